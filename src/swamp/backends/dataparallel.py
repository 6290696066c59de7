"""DataParallel: one particle trained by several processes, each on its own rows of every batch."""

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, suppress
from threading import Event
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from swamp.backends.backend import Progress
from swamp.backends.particle import Particle
from swamp.backends.sharding import shard
from swamp.backends.synchronised import Synchronised
from swamp.errors import Diverged, Interrupted, SwampError
from swamp.files import digest
from swamp.masks import is_spread
from swamp.training import Snapshot

_READ_EVERY = 16


class Later(Exception):  # noqa: N818
    """The snapshot that was asked for can be taken at a later step only."""


class DataParallel:
    """This process's share (see training/share.py) among those of the mesh's dimension "data".

    asked: set on any of the processes, it stops all of them at the same step; `stopping` tells when.
    sharded: spread the parameters over the processes too, where there are several. A snapshot, for which all of them
    must come together, is then asked for with `ask`, and taken where `saving` or `stopping` say so.
    """

    def __init__(self, mesh: DeviceMesh, asked: Event, *, sharded: bool = False) -> None:
        self.group: Any = mesh.get_group("data")
        self.place, self.size = mesh.get_local_rank("data"), mesh["data"].size()
        self.asked = asked
        self.sharded = sharded and self.size > 1
        self.stopping = self.saving = self.wanted = False
        self.calls = 0
        self.flags: Tensor | None = None

    @property
    def first(self) -> bool:
        """Whether this process speaks for the particle: it reports, saves and sends it."""
        return self.place == 0

    def shard(self, model: nn.Module) -> bool:
        """See Share.shard."""
        if self.sharded:
            shard(model, self.group)
        return self.sharded

    def rows(self, examples: int) -> slice:
        """See Share.rows; parts differ by one row at most."""
        return slice(examples * self.place // self.size, examples * (self.place + 1) // self.size)

    @contextmanager
    def together(self) -> Generator[None]:
        """See Share.together."""
        with Synchronised(self.group):
            yield

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """See Share.add_up; one transfer for all tensors of a type."""
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for tensor in tensors:
            if not is_spread(tensor):
                kinds.setdefault(tensor.dtype, []).append(tensor)
        for number, (kind, alike) in enumerate(kinds.items()):
            # Whether someone was asked to stop, or to save, travels along: a message of its own would cost as much.
            said = [self.asked.is_set(), self.wanted] if self.sharded else [self.asked.is_set()]
            words = [torch.full((1,), float(word), dtype=kind, device=alike[0].device) for word in said]
            flat = torch.cat([*(tensor.reshape(-1) for tensor in alike), *words])
            dist.all_reduce(flat, group=self.group)  # pyright: ignore[reportUnknownMemberType]
            start = 0
            for tensor in alike:
                tensor.copy_(flat[start : start + tensor.numel()].view(tensor.shape))
                start += tensor.numel()
            if number == 0:
                self._hear(flat[start:])

    def agree(self, number: int) -> bool:
        """Whether all processes gave the same number (63 bits)."""
        device = "cuda" if dist.get_backend(self.group) == "nccl" else "cpu"
        both = torch.tensor([number, -number], dtype=torch.int64, device=device)
        dist.all_reduce(both, dist.ReduceOp.MAX, group=self.group)  # pyright: ignore[reportUnknownMemberType]
        return int(both[0]) == -int(both[1])

    def ask(self) -> Snapshot:
        """Note that a snapshot is wanted, and raise Later."""
        self.wanted = True
        raise Later

    def saved(self) -> None:
        """Forget that one was."""
        self.wanted = self.saving = False
        self.flags = None

    def _hear(self, words: Tensor) -> None:
        # Reading from a GPU waits for all of its work: so only now and then, and at the same step everywhere.
        self.calls += 1
        self.flags = words.clone() if self.flags is None else self.flags + words
        if words.device.type == "cpu" or self.calls % _READ_EVERY == 0:
            self.stopping, self.saving = bool(self.flags[0] > 0), self.sharded and bool(self.flags[-1] > 0)


class Alone:
    """Progress of particles that this process trains by itself. asked: set to save and stop, by way of `stop`."""

    def __init__(self, told: Progress, asked: Event, stop: Callable[[], None]) -> None:
        self.told, self.asked, self.stop = told, asked, stop

    def stepped(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Report; raise Interrupted where this process was asked to stop."""
        stopping = self.asked.is_set()
        if stopping:
            self.stop()
        self.told.stepped(index, step, total, snapshot)
        if stopping:
            raise Interrupted("stopped.")

    def unfinished(self, index: int) -> Snapshot | None:
        """What it goes on from."""
        return self.told.unfinished(index)

    def ready(self, index: int, snapshot: Callable[[], Snapshot]) -> None:
        """Pass it on."""
        self.told.ready(index, snapshot)

    def finished(self, particle: Particle) -> None:
        """Report it."""
        self.told.finished(particle)

    def broke(self, index: int, error: Diverged) -> None:
        """Pass it on."""
        self.told.broke(index, error)


class OneForAll:
    """Progress of a particle that several processes train: the first of them reports and saves, all stop together.

    stop: set, before the last report, to have `told` save the training.
    """

    def __init__(self, told: Progress, share: DataParallel, stop: Callable[[], None]) -> None:
        self.told, self.share, self.stop = told, share, stop

    def stepped(self, index: int, step: int, total: int, snapshot: Callable[[], Snapshot]) -> None:
        """Report; raise Interrupted where any of the processes was asked to stop."""
        if self.share.stopping:
            self.stop()
        if self.share.sharded:
            snapshot = self._agreed(snapshot)
        if self.share.first:
            with suppress(Later):
                self.told.stepped(index, step, total, snapshot)
        if self.share.stopping:
            raise Interrupted("stopped.")

    def _agreed(self, snapshot: Callable[[], Snapshot]) -> Callable[[], Snapshot]:
        if not (self.share.saving or self.share.stopping):
            return self.share.ask
        taken = snapshot()
        self.share.saved()
        return lambda: taken

    def unfinished(self, index: int) -> Snapshot | None:
        """What all of them go on from. Raises SwampError where they do not find the same."""
        found = self.told.unfinished(index)
        if not self.share.agree(-1 if found is None else found.step):
            raise SwampError(
                f"the ranks that train particle {index} do not find the same snapshot of it. The run directory must "
                "lie on a file system that all hosts share."
            )
        return found

    def ready(self, index: int, snapshot: Callable[[], Snapshot]) -> None:
        """Nothing: they train one particle after the other."""

    def finished(self, particle: Particle) -> None:
        """Report a particle that came out alike everywhere. Raises SwampError where it did not."""
        if not self.share.agree(int(digest(particle.weights)[:15], 16)):
            raise SwampError(
                f"the ranks that trained particle {particle.index} ended with different weights. A layer that mixes "
                "rows of a batch by other means than BatchNorm, or a model that draws random numbers by other means "
                "than dropout, cannot be trained so: start no more ranks than particles."
            )
        if self.share.first:
            self.told.finished(particle)

    def broke(self, index: int, error: Diverged) -> None:
        """Report it, and go on or raise together: all of them saw it at the same step."""
        raised: Exception | None = None
        if self.share.first:
            try:
                self.told.broke(index, error)
            except SwampError as refused:
                raised = refused
        if not self.share.agree(int(raised is not None)) and raised is None:
            raise error
        if raised is not None:
            raise raised
