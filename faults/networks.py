"""Random networks: exported and executed by kernels they compute the same as in torch, or are refused with a reason.

    python faults/networks.py --cases 2000 --seed 0
    python faults/networks.py --first 1234 --cases 1       # one case again, with its network
    python faults/sanitize.py --lanes 16 faults/networks.py --cases 200 --lanes 4,8,16

A case is a random chain of operators (convolutions, pooling, norms, slices, pads, attention, ...) on images, signals,
tokens, vectors or token numbers, with random zeros in its weights. It is exported, read back, and executed at random
batch sizes with several sizes of blocks, by kernels for each number of SIMD lanes. Every output is compared with that
of the network, and may differ by 1e-4 of its largest number, or ten times the rounding error of torch itself.
"""

import argparse
import copy
import random
import re
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from swamp.errors import SwampError
from swamp.runtime import kernels
from swamp.runtime.archive import read, save
from swamp.runtime.kernels import KernelConfig, KernelExecutor
from swamp.runtime.program import Node
from swamp.runtime.recurrent import unroll_recurrences
from swamp.runtime.regions import partition
from swamp.runtime.rewrite import fold_batchnorm, remove_dead_units
from swamp.runtime.tracing import trace

BLOCKS = (1, 2, 3, 4, 7, 16, 32, 64)
LIMIT = 20_000
"""Most numbers of one example in a value of a random network."""

Op = Callable[..., Tensor]


class Call(nn.Module):
    """A function of values and of its own modules."""

    def __init__(self, function: Op, *own: nn.Module, others: Sequence[int] = ()) -> None:
        super().__init__()
        self.function, self.own, self.others = function, nn.ModuleList(own), list(others)

    def forward(self, x: Tensor, values: Sequence[Tensor]) -> Tensor:
        return self.function(x, *(values[number] for number in self.others), *self.own)


class RandomNetwork(nn.Module):
    """A chain of calls. Each reads the value before it, and some read older values."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = nn.ModuleList()
        self.names: list[str] = []
        self.outputs: list[int] = [-1]

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for call in self.calls:
            values.append(call(values[-1], values))
        found = tuple(values[number] for number in self.outputs)
        return found[0] if len(found) == 1 else found


@dataclass
class Maker:
    """Makes random networks. All that it chooses depends on `chance` alone."""

    chance: random.Random
    values: list[Tensor] = field(default_factory=list[Tensor])

    def few(self, low: int, high: int) -> int:
        return self.chance.randint(low, high)

    def one(self, *choices: Any) -> Any:
        return self.chance.choice(choices)

    def pair(self, low: int, high: int) -> tuple[int, int]:
        return self.few(low, high), self.few(low, high)

    def maybe(self, probability: float = 0.5) -> bool:
        return self.chance.random() < probability

    def groups(self, channels: int) -> int:
        return self.one(1, 1, *[number for number in range(1, channels + 1) if channels % number == 0])

    # Each family of operators returns (name, call) for the present value.

    def of_image(self, x: Tensor) -> list[Callable[[], Any]]:  # noqa: C901 a list of choices
        c, h, w = x.shape[1:]
        few, one, maybe, pair = self.few, self.one, self.maybe, self.pair

        def conv() -> Any:
            groups = self.groups(c)
            options = {"dilation": pair(1, 2), "groups": groups, "bias": maybe()}
            if maybe(0.1):
                return nn.Conv2d(c, groups * few(1, 6), pair(1, 4), padding="same", **options)
            mode = one("zeros", "zeros", "zeros", "reflect", "circular")
            return nn.Conv2d(c, groups * few(1, 6), pair(1, 4), pair(1, 3), pair(0, 3), padding_mode=mode, **options)

        def transposed() -> Any:
            groups, stride = self.groups(c), pair(1, 3)
            extra = (few(0, stride[0] - 1), few(0, stride[1] - 1))
            return nn.ConvTranspose2d(
                c, groups * few(1, 4), pair(1, 4), stride, pair(0, 2), extra, groups, maybe(), few(1, 2)
            )

        def pool() -> Any:
            size = pair(1, 3)
            padding, stride = (few(0, size[0] // 2), few(0, size[1] // 2)), one(None, pair(1, 3))
            return one(
                nn.MaxPool2d(size, stride, padding, one(1, pair(1, 2)), ceil_mode=maybe(0.2)),
                nn.AvgPool2d(size, stride, padding, maybe(0.2), maybe(), one(None, None, 3)),
                nn.LPPool2d(2, size, stride),
            )

        def adaptive() -> Any:
            return one(nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)(one(1, 1, (1, 2), (3, 2), (None, 1)))

        def norm() -> Any:
            shape = one([w], [h, w], [c, h, w])
            affine = maybe()
            return one(
                nn.BatchNorm2d(c, affine=affine),
                nn.BatchNorm2d(c),
                nn.GroupNorm(self.groups(c), c, affine=affine),
                nn.InstanceNorm2d(c, affine=affine, track_running_stats=maybe(0.3)),
                nn.LayerNorm(shape, elementwise_affine=affine),
                nn.LocalResponseNorm(2),
            )

        def part() -> Any:
            a, b, s, t, high = few(0, 2), few(0, 2), few(1, 3), few(1, 3), few(0, 1)
            first, step = few(0, max(0, c // 2)), few(1, 2)
            return one(
                lambda x: x[:, :, a::s, b::t],
                lambda x: x[:, :, : h - high, b:],
                lambda x: x[:, :, ::s],
                lambda x: x[..., ::t],
                lambda x: x[:, first::step],
                lambda x: x[:, first : first + s],
                lambda x: torch.cat([x[:, first:], x[:, : first + 1]], 1),
                lambda x: x[:, : c // 2] * torch.sigmoid(x[:, c - c // 2 :]),
                lambda x: x[:, :, a : a + 1],
                lambda x: x.flip(3),
                lambda x: x.roll((a, b), (2, 3)),
            )

        def pad() -> Any:
            amounts, value, mode = [few(0, 2) for _ in range(4)], one(0.0, 0.0, 0.5), one("replicate", "reflect")
            back = [few(0, 1), few(0, 2)]
            return one(
                lambda x: functional.pad(x, amounts, value=value),
                lambda x: functional.pad(x, [0, 0, 0, 0, *back]),
                lambda x: functional.pad(x, amounts, mode=mode),
                lambda x: functional.pad(x, [-1, 0, *amounts[2:]]),
            )

        def resize() -> Any:
            scale, mode = one(2, 1.5, 0.5), one("nearest", "bilinear", "area", "bicubic", "nearest-exact")
            size, corners = [h + few(0, 3), w + few(-1, 2)], maybe()
            aligned = {"align_corners": corners} if mode in ("bilinear", "bicubic") else {}
            return one(
                lambda x: functional.interpolate(x, scale_factor=scale, mode=mode, **aligned),
                lambda x: functional.interpolate(x, size=size, mode=mode, **aligned),
                lambda x: functional.pixel_shuffle(x, 2),
                lambda x: functional.pixel_unshuffle(x, 2),
            )

        def reduced() -> Any:
            axes = one((2, 3), (2,), (3,), (1,), (1, 2), (1, 3), (-1, -2), (1, 2, 3), (-1,))
            keep = maybe()
            return one(
                lambda x: x.mean(axes, keepdim=keep),
                lambda x: x.mean(axes, keep),
                lambda x: x.sum(axes, keepdim=keep),
                lambda x: x.amax(axes, keep),
                lambda x: x.flatten(2).mean(2),
                lambda x: x.var(axes, unbiased=False, keepdim=keep),
            )

        def moved() -> Any:
            window = one(1, 2)
            return one(
                lambda x: x.flatten(1),
                lambda x: x.flatten(2),
                lambda x: x.flatten(2).transpose(1, 2),
                lambda x: x.transpose(2, 3),
                lambda x: x.permute(0, 2, 3, 1),
                lambda x: x.permute(0, 2, 3, 1).flatten(1),
                lambda x: x.transpose(1, 2).flatten(1),
                lambda x: x.flatten(1, 2),
                lambda x: x.reshape(-1, 1, *x.shape[2:]),
                lambda x: x.reshape(x.shape[0] * x.shape[1], -1),
                lambda x: (
                    x.reshape(x.shape[0], c, h // window, window, w // window, window)
                    .permute(0, 2, 4, 3, 5, 1)
                    .reshape(-1, window * window, c)
                ),
                lambda x: x.unfold(2, 2, 1).flatten(3),
                lambda x: x.squeeze(2),
            )

        def excited() -> Any:
            layer = nn.Conv2d(c, c, 1)
            return lambda x, layer: x * torch.sigmoid(layer(x.mean((2, 3), keepdim=True))), layer

        def last() -> Any:
            return nn.Linear(w, few(1, 8))

        layers = [conv, conv, conv, conv, conv, transposed, pool, pool, adaptive, norm, norm]
        return [*layers, part, pad, resize, reduced, moved, moved, excited, last]

    def of_tokens(self, x: Tensor) -> list[Callable[[], Any]]:
        t, f = x.shape[1:]
        few, one, maybe = self.few, self.one, self.maybe

        def conv() -> Any:
            groups = self.groups(t)
            return one(
                nn.Conv1d(t, groups * few(1, 5), few(1, 4), few(1, 3), few(0, 3), few(1, 2), groups, maybe()),
                nn.ConvTranspose1d(t, groups * few(1, 4), few(1, 4), few(1, 2), few(0, 1), 0, groups),
            )

        def linear() -> Any:
            return nn.Linear(f, few(1, 24), maybe())

        def norm() -> Any:
            return one(
                nn.LayerNorm(f, elementwise_affine=maybe()),
                nn.RMSNorm(f, one(None, 1e-5), maybe()),
                lambda x: x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5),
                nn.LayerNorm([t, f]),
                nn.BatchNorm1d(t),
                nn.GroupNorm(self.groups(t), t),
                nn.InstanceNorm1d(t, affine=maybe()),
            )

        def attention() -> Any:
            heads = one(*[number for number in (1, 2, 4) if f % number == 0])
            layer = nn.TransformerEncoderLayer(
                f, heads, few(1, 20), 0.0, one("relu", "gelu"), batch_first=True, norm_first=maybe()
            )
            alone = nn.MultiheadAttention(f, heads, batch_first=True)
            return one(layer, (lambda x, layer: layer(x, x, x)[0], alone))

        def recurrent() -> Any:
            return one(
                lambda x, layer: layer(x)[0],
                lambda x, layer: torch.cat([layer(x)[0][:, -1:], layer(x.flip(1))[0]], 1),
            ), one(nn.LSTM, nn.GRU, nn.RNN)(f, few(1, 20), one(1, 1, 2), maybe(), True, bidirectional=maybe(0.3))

        def part() -> Any:
            a, s = few(0, 2), few(1, 3)
            return one(
                lambda x: x[:, 0],
                lambda x: x[:, -1],
                lambda x: x[:, a::s],
                lambda x: x[:, :, a::s],
                lambda x: x[..., :-1],
                lambda x: x.flip(1),
                lambda x: functional.pad(x, [a, s]),
                lambda x: functional.pad(x, [0, 0, 1, a]),
            )

        def reduced() -> Any:
            keep, axis = maybe(), one(1, 2, -1)
            return one(
                lambda x: x.mean(axis, keepdim=keep),
                lambda x: x.mean(axis),
                lambda x: x.mean((1, 2)),
                lambda x: x.amax(axis, keepdim=keep),
                lambda x: x.max(axis).values,
                lambda x: x.softmax(axis),
                lambda x: x.cumsum(1),
            )

        def moved() -> Any:
            return one(
                lambda x: x.transpose(1, 2),
                lambda x: x.transpose(1, 2).flatten(1),
                lambda x: x.flatten(1),
                lambda x: x.reshape(x.shape[0] * t, f),
                lambda x: x.reshape(-1, f),
                lambda x: x.flatten(0, 1),
                lambda x: x.unsqueeze(1),
                lambda x: x.unsqueeze(3),
                lambda x: x.reshape(x.shape[0], t, f // 2, 2),
                lambda x: x.reshape(x.shape[0], t, 2, -1).transpose(1, 2),
                lambda x: x @ x.transpose(1, 2),
            )

        def pool() -> Any:
            size = few(1, 3)
            return one(
                nn.MaxPool1d(size, one(None, 2), size // 2),
                nn.AvgPool1d(size, one(None, 2), size // 2),
                nn.AdaptiveAvgPool1d(one(1, 2)),
            )

        layers = [conv, conv, conv, linear, linear, linear, norm, norm, attention, recurrent]
        return [*layers, part, part, reduced, moved, moved, pool]

    def of_vector(self, x: Tensor) -> list[Callable[[], Any]]:
        (f,) = x.shape[1:]
        few, one, maybe = self.few, self.one, self.maybe

        def linear() -> Any:
            return nn.Linear(f, one(1, few(1, 12), few(1, 80)), maybe())

        def norm() -> Any:
            return one(
                nn.BatchNorm1d(f), nn.BatchNorm1d(f, affine=False), nn.LayerNorm(f), nn.GroupNorm(self.groups(f), f)
            )

        def moved() -> Any:
            side = few(1, 4)
            return one(
                lambda x: x.unsqueeze(1),
                lambda x: x.unsqueeze(2),
                lambda x: x.reshape(x.shape[0], side, -1),
                lambda x: x.reshape(x.shape[0], -1, side, 2),
                lambda x: x.reshape(-1, f // 2),
                lambda x: x[:, ::side],
                lambda x: x[:, side:],
                lambda x: x[:, :-side],
                lambda x: torch.cat([x[:, side:], x[:, : 2 * side]], 1),
                lambda x: x[:, : f // 2] * torch.tanh(x[:, f - f // 2 :]),
                lambda x: x.softmax(1),
                lambda x: functional.normalize(x, dim=1),
                lambda x: x.view(-1, 1, 1, f),
            )

        def gated() -> Any:
            return lambda x, one, two: one(x) * torch.sigmoid(two(x)), nn.Linear(f, f), nn.Linear(f, f)

        return [linear, linear, linear, linear, norm, moved, gated]

    def of_any(self, x: Tensor) -> list[Callable[[], Any]]:
        one, maybe, chance = self.one, self.maybe, self.chance
        alike = [n for n, value in enumerate(self.values) if value.shape == x.shape and value.is_floating_point()]

        def activation() -> Any:
            inplace = maybe(0.3)
            return one(
                nn.ReLU(inplace),
                nn.ReLU(inplace),
                nn.GELU(),
                nn.GELU("tanh"),
                nn.SiLU(inplace),
                nn.Sigmoid(),
                nn.Tanh(),
                nn.LeakyReLU(0.1, inplace),
                nn.ELU(1.0, inplace),
                nn.ReLU6(inplace),
                nn.Hardswish(inplace),
                nn.Softplus(),
                nn.PReLU(),
                nn.Mish(),
                nn.Dropout(),
            )

        def sums() -> Any:
            other = chance.choice(alike)
            combined = one(
                lambda x, y: x + y,
                lambda x, y: y + x,
                lambda x, y: torch.relu(x + y),
                lambda x, y: x * y,
                lambda x, y: x - y,
                lambda x, y: torch.cat([x, y], 1),
                lambda x, y: torch.cat([y, x], -1),
                lambda x, y: torch.maximum(x, y),
                lambda x, y: torch.add(x, y, alpha=2),
            )
            return Call(combined, others=[other])

        def in_place() -> Any:
            other = chance.choice(alike)

            def added(x: Tensor, y: Tensor) -> Tensor:
                x = x.clone()
                x += y
                return x.relu_()

            def masked(x: Tensor, y: Tensor) -> Tensor:
                x = x.clone()
                x[:, 0] = 0
                return x

            return Call(one(added, masked), others=[other])

        def typed() -> Any:
            return one(
                lambda x: x.double().mul(1.5).float(),
                lambda x: x.double() + 1,
                lambda x: x * 2 + 1,
                lambda x: 1 - x,
                lambda x: x / 3,
                lambda x: x.float(),
                lambda x: x.to(torch.float64).relu().to(torch.float32),
                lambda x: x.clamp(-1, 1),
                lambda x: x * torch.arange(x.shape[-1]),
                lambda x: x + torch.ones(x.shape[-1]),
                lambda x: x.contiguous(),
                lambda x: x.abs().sqrt(),
                lambda x: x.exp().clamp(max=3.0),
            )

        def wide() -> Any:
            return nn.Linear(x.shape[-1], self.few(1, 8), dtype=x.dtype)

        return [activation, activation, activation, sums, sums, in_place, typed, wide]

    def network(self) -> tuple[RandomNetwork, Callable[[int], Tensor]]:
        """A network and a function of the batch size that returns inputs for it."""
        few, one = self.few, self.one
        kind = one("image", "image", "image", "signal", "tokens", "vector", "numbers", "unbatched", "double")
        shape = {
            "image": (one(1, 2, 3, 6), few(1, 12), few(1, 12)),
            "signal": (one(1, 2, 4), few(1, 24)),
            "tokens": (few(1, 9), one(4, 8, 12)),
            "vector": (few(1, 60),),
            "numbers": (few(1, 8),),
            "unbatched": (few(2, 5), few(3, 9), few(3, 9)),
            "double": (few(1, 20),),
        }[kind]
        seed = few(0, 2**31)

        def inputs(batch: int) -> Tensor:
            generator = torch.Generator().manual_seed(seed + batch)
            if kind == "numbers":
                return torch.randint(0, 11, (batch, *shape), generator=generator)
            whole = shape if kind == "unbatched" else (batch, *shape)
            return torch.randn(whole, generator=generator, dtype=torch.float64 if kind == "double" else torch.float32)

        network = RandomNetwork().eval()
        self.values = [inputs(5)]
        torch.manual_seed(seed)
        if kind == "numbers":
            self.add(network, one(nn.Embedding(11, 8), nn.EmbeddingBag(11, 8), nn.Embedding(11, 6, padding_idx=0)))
        if kind == "unbatched":
            self.add(network, nn.Conv2d(shape[0], few(1, 5), 3, padding=1))
        for _ in range(few(2, 9)):
            x = self.values[-1]
            dims = {4: self.of_image, 3: self.of_tokens, 2: self.of_vector}.get(x.dim(), self.of_any)
            family = dims if self.maybe(0.65) else self.of_any
            self.add(network, self.chance.choice(family(x)))
        network.outputs = [len(network.calls)]
        if self.maybe(0.15):
            network.outputs.append(few(0, len(network.calls)))
        self.prune(network)
        return network, inputs

    def add(self, network: RandomNetwork, make: Any) -> None:
        """Append an operator to the network, unless it does not fit the present value."""
        try:
            made = make() if not isinstance(make, nn.Module) else make
            own = made if isinstance(made, tuple) else (made,)
            call = made if isinstance(made, Call) else None
            call = call or (Call(own[0], *own[1:]) if not isinstance(own[0], nn.Module) else Call(_apply, own[0]))
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                x = self.values[-1].clone()  # operators in place would change an older value
                value = call.eval()(x, self.values)
                small = value.numel() <= LIMIT * 5 and value.numel() and bool(value.isfinite().all())
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, ZeroDivisionError):
            return
        if small and value.dim() and value.abs().max() < 1e6:
            # In place of a parameter or an older value: not what the network as a whole would do.
            network.calls.append(call)
            network.names.append(_described(call))
            self.values.append(value)

    def prune(self, network: nn.Module) -> None:
        """Random zeros in all weights, random statistics of norms."""
        for name, parameter in network.named_parameters():
            sparsity = self.one(0.0, 0.5, 0.8, 0.95, 1.0, self.chance.random())
            with torch.no_grad():
                if parameter.dim() > 1:
                    parameter[torch.rand(parameter.shape) < sparsity] = 0
                    if self.maybe(0.3):
                        parameter[torch.rand(len(parameter)) < 0.3] = 0
                    if self.maybe(0.3):
                        parameter[:, torch.rand(parameter.shape[1]) < 0.3] = 0
                elif "bias" not in name:
                    parameter.copy_(torch.rand(parameter.shape) + 0.5)
        for name, buffer in network.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand(buffer.shape) + (0.5 if "var" in name else -0.5))


def _apply(x: Tensor, module: nn.Module) -> Tensor:
    return module(x)


def _described(call: Call) -> str:
    if call.own and call.function is _apply:
        return str(call.own[0])
    code = call.function.__code__
    return f"line {code.co_firstlineno} of {Path(code.co_filename).name}{list(call.own) or ''}{call.others or ''}"


@dataclass
class Outcome:
    """What became of a case."""

    name: str
    wrong: str = ""
    """Description of a difference."""


Made = tuple[random.Random, RandomNetwork, Callable[[int], Tensor]]


def made(seed: int, number: int) -> Made:
    """The network and the inputs of a case, which depend only on the seed and its number."""
    chance = random.Random(f"networks {seed} {number}")
    return chance, *Maker(chance).network()


def case(made: Made, path: Path, lanes: Sequence[int]) -> Outcome:
    """Export a network, read it back, execute it and compare its outputs."""
    chance, network, inputs = made
    batches = sorted({1, chance.randint(2, 8), chance.randint(9, 130)})
    blocks = {width: chance.sample(BLOCKS, 2) for width in lanes}
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            save(trace(network, inputs(5)), path)
            program = unroll_recurrences(remove_dead_units(fold_batchnorm(read(path))))
            return _compared(network, inputs, batches, blocks, program)
    except SwampError as error:
        broken = "internal error" in str(error) or "damaged" in str(error)
        return Outcome(f"refused: {_reason(str(error))}", str(error) if broken else "")


def _reason(message: str) -> str:
    """The beginning of a message, without names that differ from case to case."""
    return re.sub(r"/\S+|'[^']*'|\d+", "_", " ".join(message.split()))[:80]


def _compared(
    network: RandomNetwork,
    inputs: Callable[[int], Tensor],
    batches: Sequence[int],
    blocks: Mapping[int, Sequence[int]],
    program: Any,
) -> Outcome:
    regions = [part for part in partition(program) if not isinstance(part, Node)]
    exact = _double(network)
    for width, sizes in blocks.items():
        with width_of(width):
            for block in sizes:
                execute = KernelExecutor(program, KernelConfig(block))
                for batch in batches:
                    given = inputs(batch)
                    try:
                        expected, finest = network(given.clone()), exact(given.clone()) if exact else None
                    except (RuntimeError, ValueError):
                        continue  # the network itself cannot take this batch
                    try:
                        program.check_inputs([given])
                    except SwampError as error:
                        return Outcome(f"refused: {_reason(str(error))}")
                    difference = _difference(execute([given]), expected, finest)
                    if difference:
                        where = f"{width} lanes, block {block}, batch {batch}: {difference}"
                        return Outcome("different", where)
    return Outcome("equal" if regions else "equal, all in torch")


def _double(network: RandomNetwork) -> Callable[[Tensor], Any] | None:
    """The network in float64, to measure the rounding error of torch; None if that fails."""
    try:
        twin = copy.deepcopy(network).double()
    except RuntimeError:
        return None

    def call(x: Tensor) -> Any:
        try:
            return twin(x.double() if x.is_floating_point() else x)
        except (RuntimeError, ValueError):
            return None

    return call


def _difference(found: Any, expected: Any, finest: Any) -> str:
    if isinstance(expected, tuple):
        if not isinstance(found, tuple) or len(found) != len(expected):
            return f"{type(found).__name__} in place of {len(expected)} outputs"
        finer = finest or [None] * len(expected)
        return next(filter(None, map(_difference, found, expected, finer)), "")
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return f"{tuple(found.shape)} {found.dtype} in place of {tuple(expected.shape)} {expected.dtype}"
    if not expected.numel():
        return ""
    found, expected = found.double(), expected.double()
    scale = float(expected.abs().nan_to_num().max())
    rounding = float((expected - finest.double()).abs().nan_to_num().max()) if finest is not None else 0.0
    error = float((found - expected).abs().max())
    same = bool(((found == expected) | (found.isnan() & expected.isnan())).all())
    return "" if same or error <= 1e-4 * scale + 10 * rounding + 1e-30 else f"differs by {error:.3g} of {scale:.3g}"


class width_of:  # noqa: N801
    """Within it, kernels have this number of SIMD lanes; 0: the number of this processor."""

    libraries: dict[int, Any] = {}  # noqa: RUF012

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes

    def __enter__(self) -> None:
        if self.lanes not in self.libraries:
            compiler, flags = kernels._compiler(), [*kernels._FLAGS, "-fopenmp", *kernels._added_flags()]
            if self.lanes:
                flags = [flag for flag in flags if "SIMD_WIDTH" not in flag] + [f"-DSIMD_WIDTH={self.lanes}"]
            self.libraries[self.lanes] = kernels._load_library(kernels._compiled(compiler, tuple(flags)))
        self.before = kernels.kernel_library
        library = self.libraries[self.lanes]
        kernels.kernel_library = lambda: library  # pyright: ignore

    def __exit__(self, *_: object) -> None:
        kernels.kernel_library = self.before


def campaign(seed: int, numbers: Sequence[int], lanes: Sequence[int]) -> tuple[Counter[str], list[str]]:
    """Count the outcomes of these cases; the second value describes those that are wrong."""
    counts: Counter[str] = Counter()
    wrong: list[str] = []
    said = time.monotonic()
    with TemporaryDirectory(prefix="swamp-networks-") as folder:
        for done, number in enumerate(numbers):
            one = made(seed, number)
            try:
                outcome = case(one, Path(folder) / "network.safetensors", lanes)
            except Exception as error:
                outcome = Outcome(f"another error: {type(error).__name__}", traceback.format_exc(limit=-4))
            counts[outcome.name] += 1
            if outcome.wrong:
                layers = "".join(f"\n  {place}: {name}" for place, name in enumerate(one[1].names, 1))
                wrong.append(f"case {number}: {outcome.name}: {outcome.wrong}{layers}\n  outputs {one[1].outputs}")
                print(f"WRONG {wrong[-1]}", flush=True)
            if time.monotonic() - said > 20:
                said = time.monotonic()
                print(f"{done + 1} of {len(numbers)}: {dict(counts.most_common(4))}", flush=True)
    return counts, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lanes", default="0", help="SIMD lanes, such as 4,8,16; 0: those of this processor")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    numbers = range(given.first, given.first + given.cases)
    counts, wrong = campaign(given.seed, numbers, [int(one) for one in given.lanes.split(",")])
    for name, count in counts.most_common():
        print(f"{count:6} {name}")
    print(
        f"networks: {given.cases} from {given.first}, {len(wrong)} wrong "
        f"({time.monotonic() - began:.0f} s, seed {given.seed}, lanes {given.lanes})"
    )
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
