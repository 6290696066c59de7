"""Data parallelism: several processes train one particle, each on its shard of every batch.

Gradients are summed over the processes by an all-reduce, or the parameters are sharded by torch's FSDP2.
"""

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import suppress
from threading import Event
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from swamp.backends.base import ForwardingProgress, Progress
from swamp.backends.particle import Particle
from swamp.errors import Diverged, Interrupted, SwampError
from swamp.files import digest
from swamp.masks.dtensor import is_sharded
from swamp.training.snapshot import Snapshot

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_STEPS_PER_READ = 16
"""Steps on a GPU between two reads of the flags: a read waits for all work of the GPU."""


class DataParallel:
    """The `Shard` of this process in a device mesh.

    Args:
        mesh: device mesh with a dimension "data"; the processes along it train one particle.
        stop: set on any of these processes, it stops all of them at the same step (`stopping`).
        sharded: shard the parameters over the processes too (FSDP2). A snapshot is then a collective operation: it is
            asked for with `request_snapshot` and taken by all processes at the step where `saving` is set.
    """

    def __init__(self, mesh: DeviceMesh, stop: Event, *, sharded: bool = False) -> None:
        self.group: Any = mesh.get_group("data")
        self.place, self.size = mesh.get_local_rank("data"), mesh["data"].size()
        self.stop, self.sharded = stop, sharded and self.size > 1
        self.stopping = self.saving = self.snapshot_requested = False
        self.steps = 0
        self.flags: Tensor | None = None

    @property
    def first(self) -> bool:
        """Whether this process reports and saves the particle."""
        return self.place == 0

    def shard_parameters(self, model: nn.Module) -> bool:
        """See Shard.shard_parameters."""
        if self.sharded:
            _fully_shard(model, self.group)
        return self.sharded

    def rows(self, examples: int) -> slice:
        """See Shard.rows; the shards of a batch differ by at most one row."""
        return slice(examples * self.place // self.size, examples * (self.place + 1) // self.size)

    def synchronised_batchnorm(self) -> "SynchronisedBatchNorm":
        """See Shard.synchronised_batchnorm."""
        return SynchronisedBatchNorm(self.group)

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """See Shard.all_reduce; one transfer per data type."""
        by_dtype: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            if not is_sharded(tensor):
                flat = torch.view_as_real(tensor) if tensor.is_complex() else tensor
                by_dtype.setdefault(flat.dtype, []).append(flat)
        for number, (dtype, same) in enumerate(by_dtype.items()):
            # The flags are part of the transfer: a transfer for them alone would cost as much.
            flags = [
                torch.full((1,), float(flag), dtype=dtype, device=same[0].device)
                for flag in (self.stop.is_set(), self.snapshot_requested)
            ]
            flat = torch.cat([*(tensor.reshape(-1) for tensor in same), *flags])
            dist.all_reduce(flat, group=self.group)  # pyright: ignore[reportUnknownMemberType]
            start = 0
            for tensor in same:
                tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
                start += tensor.numel()
            if number == 0:
                self._read(flat[start:])

    def agree(self, number: int) -> bool:
        """Whether all processes give the same number (up to 63 bits)."""
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        both = torch.tensor([number, -number], dtype=torch.int64, device=device)
        dist.all_reduce(both, dist.ReduceOp.MAX, group=self.group)  # pyright: ignore[reportUnknownMemberType]
        return int(both[0]) == -int(both[1])

    def request_snapshot(self) -> Snapshot:
        """Ask all processes for a snapshot at a later step, and raise _SnapshotLater."""
        self.snapshot_requested = True
        raise _SnapshotLater

    def snapshot_taken(self) -> None:
        """Clear the request for a snapshot."""
        self.snapshot_requested = self.saving = False
        self.flags = None

    def _read(self, flags: Tensor) -> None:
        # The flags are read at the same step on all processes.
        self.steps += 1
        self.flags = flags.clone() if self.flags is None else self.flags + flags
        if flags.device.type == "cpu" or self.steps % _STEPS_PER_READ == 0:
            self.stopping, self.saving = bool(self.flags[0] > 0), self.sharded and bool(self.flags[1] > 0)


class _SnapshotLater(Exception):  # noqa: N818
    """The requested snapshot can be taken only at a later step, by all processes together."""


class GroupProgress(ForwardingProgress):
    """Progress of a particle that several processes train: the first one reports and saves, all stop at one step.

    agreed: set before the last report, so that `inner` saves the training.
    """

    def __init__(self, inner: Progress, shard: DataParallel, agreed: Event) -> None:
        super().__init__(inner)
        self.shard, self.agreed = shard, agreed

    def on_step(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Report; raise Interrupted once any of the processes was asked to stop."""
        if self.shard.stopping:
            self.agreed.set()
        if self.shard.sharded:
            snapshot = self._collective(snapshot)
        if self.shard.first:
            with suppress(_SnapshotLater):
                self.inner.on_step(index, step, total, snapshot)
        if self.shard.stopping:
            raise Interrupted("stopped.")

    def _collective(self, snapshot: Callable[[], Snapshot]) -> Callable[[], Snapshot]:
        if not (self.shard.saving or self.shard.stopping):
            return self.shard.request_snapshot
        taken = snapshot()
        self.shard.snapshot_taken()
        return lambda: taken

    def load_snapshot(self, index: int) -> Snapshot | None:
        """The snapshot to resume from. Raises SwampError where the processes find different ones."""
        found = self.inner.load_snapshot(index)
        if not self.shard.agree(-1 if found is None else found.step):
            raise SwampError(
                f"the ranks that train particle {index} find different snapshots of it. Put the run directory on a "
                "file system that all hosts share."
            )
        return found

    def on_finished(self, particle: Particle) -> None:
        """Report the particle. Raises SwampError where the processes ended with different weights."""
        if not self.shard.agree(int(digest(particle.weights)[:15], 16)):
            raise SwampError(
                f"the ranks that trained particle {particle.index} ended with different weights. Data parallelism "
                "supports no layer that mixes the rows of a batch other than BatchNorm, and no random numbers in a "
                "model other than dropout: start no more ranks than particles."
            )
        if self.shard.first:
            self.inner.on_finished(particle)

    def on_diverged(self, index: int, error: Diverged) -> None:
        """Report it; continue or raise on all processes alike, which see the divergence at the same step."""
        raised: Exception | None = None
        if self.shard.first:
            try:
                self.inner.on_diverged(index, error)
            except SwampError as stopped:
                raised = stopped
        if not self.shard.agree(int(raised is not None)) and raised is None:
            raise error
        if raised is not None:
            raise raised


class SynchronisedBatchNorm(TorchFunctionMode):
    """Inside the block, F.batch_norm in training mode uses mean and variance over the rows of all processes of `group`.

    A mode, because it leaves the user's module as it is (and torch's SyncBatchNorm needs GPUs). Running statistics
    are updated as torch does for the whole batch, with the unbiased variance. Other layers that mix the rows of a
    batch see only the rows of their own process.
    """

    def __init__(self, group: Any) -> None:
        super().__init__()
        self.group = group

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)
        wide = input.double() if input.dtype == torch.float64 else input.float()
        other_dims = [dim for dim in range(wide.dim()) if dim != 1]
        shape = [1, -1] + [1] * (wide.dim() - 2)
        rows = wide.new_tensor([wide.numel() / wide.shape[1]])
        sums = self._sum(torch.cat([wide.sum(other_dims), rows]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = wide - mean.view(shape)
        # Of centred values: a mean of squares minus a squared mean would cancel.
        variance = self._sum(centred.square().sum(other_dims)) / count
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                unbiased = variance * (count / (count - 1).clamp(min=1))
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_(unbiased.to(running_var.dtype), momentum)
        normal = centred * (variance + eps).rsqrt().view(shape)
        if weight is not None:
            normal = normal * weight.view(shape)
        if bias is not None:
            normal = normal + bias.view(shape)
        return normal.to(input.dtype)

    def _sum(self, tensor: Tensor) -> Tensor:
        return cast("Tensor", _AllReduce.apply(tensor, self.group))  # pyright: ignore[reportUnknownMemberType]


class _AllReduce(torch.autograd.Function):
    """Sum over the processes of a group. The gradient of the sum of all processes' losses is summed alike."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        total = tensor.contiguous().clone()
        dist.all_reduce(total, group=group)  # pyright: ignore[reportUnknownMemberType]
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return _AllReduce.forward(ctx, gradients[0], ctx.group), None


def can_shard() -> bool:
    """Whether this version of torch has the parts of FSDP2 that sharding needs."""
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:
        return False
    return hasattr(FSDPModule, "set_force_sum_reduction_for_comms")


def _fully_shard(model: nn.Module, group: Any) -> None:
    """Shard every parameter by rows over the processes of `group`; gradients are summed.

    Raises SwampError for a parameter without rows.
    """
    # Imported here: it is slow to import, and few runs need it.
    from torch.distributed.fsdp import FSDPModule, fully_shard

    scalars = [name for name, parameter in model.named_parameters() if parameter.dim() == 0]
    if scalars:
        raise SwampError(f"the parameter {scalars[0]!r} is one number, which FSDP2 cannot shard. Omit --shard.")
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    # Named after its group: torch caches transfer plans by mesh name, also for the groups of a later job.
    mesh = DeviceMesh.from_group(group, device.type, mesh_dim_names=(f"data-{group.group_name}",))
    for module in [*fsdp_blocks(model), model]:
        fully_shard(module, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # gloo supports sums only: in float32 it silently returns the sum where a mean is asked for.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def fsdp_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules to gather at a time: children, also of containers, that share no parameter with other modules."""
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    # A tied parameter belongs to the model itself, whose parameters stay gathered during the whole step.
    return [block for block in _called(model) if all(uses[id(parameter)] == 1 for parameter in block.parameters())]


def _called(module: nn.Module) -> Generator[nn.Module]:
    for child in module.children():
        # A container may be iterated over and never called, and FSDP2 gathers only when a module is called.
        if isinstance(child, _CONTAINERS):
            yield from _called(child)
        elif any(True for _ in child.parameters()):
            yield child
