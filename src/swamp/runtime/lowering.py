"""Lowering: translate a fused region to kernel steps. Additions and activations are fused into sums."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from swamp.runtime.accumulate import (
    CsrOffsets,
    Emission,
    PendingAccumulate,
    convolution_offsets,
    linear_offsets,
    pooling_offsets,
)
from swamp.runtime.activations import ACTIVATIONS, IDENTITY, activation_of
from swamp.runtime.arena import MEAN, NORM, SUM, ArenaView, Ints, RegionBuilder, extent_shape, scalars
from swamp.runtime.bounds import check_bounds
from swamp.runtime.program import Node, Program
from swamp.runtime.regions import CONVOLUTIONS, FusedRegion, activations, channel_constant, spread_operand
from swamp.runtime.rewrite import batchnorm_scale_and_shift


@dataclass(frozen=True, eq=False)
class LoweredRegion:
    """The arguments of the kernels for one region."""

    steps: Ints
    """Integers (steps, fields), with the fields of arena.FIELDS."""
    arena_size: int
    """Floats that one thread needs."""
    block: int
    """Examples in a block."""
    names: tuple[str, ...]
    """For each kernel step, the node under which a profile counts its time."""
    pinned: tuple[Any, ...]
    """Arrays whose addresses the kernel steps contain; they must not be freed."""


def lower(program: Program, region: FusedRegion, block: int, simd_width: int) -> LoweredRegion:
    """The kernel steps of a region, for blocks of `block` examples and vectors of `simd_width` floats."""
    return _Lowering(program, region, block, simd_width).lowered()


class _Lowering:
    def __init__(self, program: Program, region: FusedRegion, block: int, simd_width: int) -> None:
        self.program, self.region, self.block, self.simd_width = program, region, block, simd_width
        self.csr_of: dict[str, CsrOffsets] = {}
        """Node name -> its sums, for convolutions and pooling."""
        self.shared: dict[tuple[Any, ...], CsrOffsets] = {}
        """Sums that several nodes compute, of other inputs: of linear layers by their parameters, and copies."""
        self.pending: dict[str, PendingAccumulate] = {}
        self.builder = RegionBuilder(region, block, simd_width, self._borders(), self._emit_pending)
        self.read_counts = dict(self.builder.unread)

    def lowered(self) -> LoweredRegion:
        builder = self.builder
        for node in self.region.nodes:
            lower_node = self._activation if node.op in ACTIVATIONS else getattr(self, f"_{node.op}")
            lower_node(node)
        for number, name in enumerate(self.region.outputs):
            builder.copy_output(name, len(self.region.inputs) + number)
        check_bounds(builder)
        steps, names, pinned = np.stack(builder.steps), tuple(builder.names), tuple(builder.pinned)
        return LoweredRegion(steps, builder.arena.size, self.block, names, pinned)

    def _emit_pending(self, name: str) -> None:
        if name in self.pending:
            Emission(self.builder, self.pending.pop(name)).emit()

    def _borders(self) -> dict[tuple[int, int], tuple[int, int]]:
        """Border for each image size (rows, columns): the largest that any reader of such an image needs.

        One border for each size, so that buffers of equal size share a layout and can be reused.
        """
        borders: dict[tuple[int, int], tuple[int, int]] = {}
        for node in self.region.nodes:
            image = self.region.extents[activations(node)[0]]
            csr = self._image_csr(node)
            if csr is None or len(image) != 3 or csr.needs_phases(self.block, self.simd_width):
                continue
            size, output = image[1:], self.region.extents[node.name][1:]
            border = csr.border(size, output)  # pyright: ignore
            before = borders.get(size, (0, 0))  # pyright: ignore
            borders[size] = (max(before[0], border[0]), max(before[1], border[1]))  # pyright: ignore
        return borders

    def _image_csr(self, node: Node) -> CsrOffsets | None:
        """The sums of a node over an image; None for all nodes but convolutions and pooling."""
        image, output = self.region.extents[activations(node)[0]], self.region.extents[node.name]
        if node.name not in self.csr_of and node.op in CONVOLUTIONS:
            self.csr_of[node.name] = convolution_offsets(self.program, node, image, output)
        if node.name not in self.csr_of and node.op in ("max_pool2d", "avg_pool2d"):
            self.csr_of[node.name] = pooling_offsets(node, image)
        return self.csr_of.get(node.name)

    def _copied(self, node: Node, name: str, **fused: Any) -> None:
        """The sums that copy each channel of the value `name`."""
        channels = self.region.extents[node.name][0]
        if (channels,) not in self.shared:
            self.shared[(channels,)] = CsrOffsets.per_channel(np.ones(channels), np.zeros(channels), "")
        self._accumulate(node, replace(self.shared[(channels,)], source=name), **fused)

    def _accumulate(self, node: Node, csr: CsrOffsets, **fused: Any) -> None:
        shape = extent_shape(self.region.extents[node.name])
        self.pending[node.name] = PendingAccumulate(csr, shape, node.name, node.name, **fused)

    # One method for each operator in regions._CHECKS.

    def _linear(self, node: Node) -> None:
        source, (_, *parameters) = self.builder.view(node.args[0].name), node.args
        key = *parameters, source.shape, source.strides
        if key not in self.shared:
            weight, bias = self.program.tensors[node.args[1].name], self.program.bias_of(node)
            self.shared[key] = linear_offsets(weight, bias, source.offsets(), "")
        self._accumulate(node, replace(self.shared[key], source=node.args[0].name))

    def _conv2d(self, node: Node) -> None:
        csr = self._image_csr(node)
        assert csr is not None
        self._accumulate(node, csr)

    _conv1d = _max_pool2d = _avg_pool2d = _conv2d

    def _batch_norm(self, node: Node) -> None:
        scale, mean, shift = batchnorm_scale_and_shift(node, self.program.tensors)
        bias = shift - mean * scale
        self._accumulate(node, CsrOffsets.per_channel(scale.numpy(), bias.numpy(), node.args[0].name))

    def _layer_norm(self, node: Node) -> None:
        """A LayerNorm, or an RMSNorm, which is not centred and has no bias."""
        given, refs = node.arguments, (node.arguments.get(name) for name in ("weight", "bias"))
        epsilon = float(np.finfo(np.float32).eps if given["eps"] is None else given["eps"])
        name, builder = node.args[0].name, self.builder
        source = builder.image(name)
        gain, shift = (None if ref is None else self.program.tensors[ref.name].detach().numpy() for ref in refs)
        tables = {"values": np.ones(source.shape[0], np.float32) if gain is None else gain}
        tables["bias"] = np.zeros(source.shape[0], np.float32) if shift is None else shift
        # Not dense: the kernel writes whole vectors.
        layout = builder.layout(source.shape, dense=False)
        target = builder.bind(node.name, ArenaView.whole(builder.arena.allocate(layout)))
        fields = {"in": source.offset, "in_channel": source.strides[0], "channels": source.shape[0]}
        fields |= {"out": target.offset, "out_channel": target.strides[0], "length": self.block}
        fields |= {name: builder.pin(table) for name, table in tables.items()}
        builder.emit(node.name, op=NORM, scalars=scalars(epsilon, float(node.op == "layer_norm")), **fields)
        builder.mark_read(name)

    _rms_norm = _layer_norm

    def _mul(self, node: Node) -> None:
        constant = channel_constant(self.program, node, self.region.extents[node.name])
        if constant is not None:
            self._accumulate(node, CsrOffsets.per_channel(constant, 0 * constant, node.args[0].name))
        else:
            self._with_residual(node, gate=True)

    _div = _mul

    def _add(self, node: Node) -> None:
        constant = channel_constant(self.program, node, self.region.extents[node.name])
        if constant is not None:
            csr = CsrOffsets.per_channel(np.ones_like(constant), constant, node.args[0].name)
            self._accumulate(node, csr)
        else:
            self._with_residual(node)

    def _with_residual(self, node: Node, *, gate: bool = False) -> None:
        """Add two values, or multiply them (gate): in the sum that computes one of them, if it is not emitted yet."""
        first, second = (ref.name for ref in node.args)
        small = spread_operand(self.program, node)
        if small is not None:
            self._spread(node, small, second if small == first else first, gate=gate)
            return
        # Prefer to fuse into the second sum: the first one is usually computed before it.
        for fused, residual in ((second, first), (first, second)):
            pending = self.pending.get(fused)
            plain = pending is not None and pending.csr.op == SUM and pending.act == IDENTITY
            if pending is not None and plain and pending.residual is None and self.read_counts[fused] == 1:
                self._fuse(fused, pending, node)
                pending.residual, pending.gate = residual, gate
                return
        self._copied(node, first, residual=second, gate=gate)

    def _spread(self, node: Node, small: str, image: str, *, gate: bool) -> None:
        """Add a number to all pixels of each channel of an image, or multiply them (gate)."""
        builder = self.builder
        source, shape = builder.image(small), extent_shape(self.region.extents[image])
        target = builder.allocate(shape)
        strides, fields = [source.strides[0], 0, 0, 1], {"in": source.offset, "out": target.offset}
        builder.emit_copy(node.name, shape, strides, [*target.strides, 1], fields)
        builder.mark_read(small)
        spread = f"{node.name}/{small}"
        builder.unread[spread] = 1
        builder.bind(spread, target)
        self._copied(node, image, residual=spread, gate=gate)

    def _fuse(self, name: str, pending: PendingAccumulate, node: Node) -> None:
        """Change the pending sum of the value `name`, so that it computes the value of `node` instead."""
        del self.pending[name]
        pending.name = node.name
        self.builder.unread[name] -= 1
        self.pending[node.name] = pending

    def _activation(self, node: Node) -> None:
        name, act = node.args[0].name, activation_of(node)
        assert act is not None
        pending = self.pending.get(name)
        if pending is not None and pending.act == IDENTITY and self.read_counts[name] == 1:
            self._fuse(name, pending, node)
            pending.act = act
        else:
            self._copied(node, name, act=act)

    def _mean(self, node: Node) -> None:
        name = node.args[0].name
        source = self.builder.image(name)
        if not source.contiguous:
            source = self.builder.copied(name, source, self.builder.layout(source.shape))
        channels, height, width = source.shape
        target = self.builder.bind(node.name, self.builder.allocate((channels, 1, 1)))
        fields = {"in": source.offset, "out": target.offset, "in_channel": source.strides[0]}
        fields |= {"out_channel": target.strides[0], "runs": height, "in_run": source.strides[1]}
        fields |= {"length": width * self.block, "pixels": height * width, "block": self.block, "channels": channels}
        self.builder.emit(node.name, op=MEAN, **fields)
        self.builder.mark_read(name)

    _adaptive_avg_pool2d = _mean

    def _flatten(self, node: Node) -> None:
        name = node.args[0].name
        view = self.builder.view(name)
        self.builder.bind(node.name, replace(view, flat=view.flat or view.shape[1:] != (1, 1)))
        self.builder.mark_read(name)

    def _slice(self, node: Node) -> None:
        name = node.args[0].name
        axis, start, end, stride = (node.arguments[name] for name in ("dim", "start", "end", "step"))
        before, after = self.region.extents[name], self.region.extents[node.name]
        if before[1:] == after[1:]:
            first, *_ = range(before[0])[start:end]
            view = self.builder.image(name).channels(first, after[0])
        else:
            view = self.builder.view(name).subsampled(axis - 1, stride)
        self.builder.bind(node.name, view)
        self.builder.mark_read(name)

    def _cat(self, node: Node) -> None:
        target = self.builder.bind(node.name, self.builder.allocate(extent_shape(self.region.extents[node.name])))
        first = 0
        for name in activations(node):
            source = self.builder.image(name)
            fields = {"in": source.offset, "out": target.offset + first * target.strides[0]}
            self.builder.emit_copy(node.name, source.shape, [*source.strides, 1], [*target.strides, 1], fields)
            first += source.shape[0]
        self.builder.mark_read(*activations(node))

    def _pad(self, node: Node) -> None:
        name = node.args[0].name
        source = self.builder.image(name)
        # Not reusable: the channels that are never written must stay zero.
        target = self.builder.allocate(self.region.extents[node.name], reusable=False)  # pyright: ignore
        self.builder.bind(node.name, target)
        first = node.args[1][4]
        fields = {"in": source.offset, "out": target.offset + first * target.strides[0]}
        self.builder.emit_copy(node.name, source.shape, [*source.strides, 1], [*target.strides, 1], fields)
        self.builder.mark_read(name)
