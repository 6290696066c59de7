"""Auto: the backend that times the others on the task itself and keeps to the fastest."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import nn

from swamp.errors import SwampError
from swamp.particles.backend import Backend, Progress
from swamp.particles.particle import Particle
from swamp.particles.sequential import Sequential
from swamp.particles.ticket import Ticket
from swamp.sparsity import Mask
from swamp.training import OptimizerFactory, Seed, Task, Training


@dataclass(frozen=True)
class Choice:
    """Which backend trains the particles of a run, and why."""

    backend: str
    why: str
    milliseconds: Mapping[str, float] = field(default_factory=dict[str, float])
    """Median time of one step of one particle, for each backend that was tried."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Any) -> "Choice":
        """What `to_json` gave. Raises SwampError for anything else."""
        try:
            return cls(str(values["backend"]), str(values["why"]), dict(values["milliseconds"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SwampError(f"this is not a record of how particles are trained: {values!r}.") from error


class Auto:
    """Trains particles by the backend that is fastest on this task and machine."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizer: OptimizerFactory | None = None,
        *,
        cycles: int = 1,
        chosen: Choice | None = None,
        tell: Callable[[Choice], None] | None = None,
    ) -> None:
        self.backend: Backend = Sequential(model, task, optimizer)
        self.cycles, self.chosen, self.tell = cycles, chosen, tell

    def train(
        self,
        ticket: Ticket,
        mask: Mask,
        training: Training,
        seeds: Sequence[tuple[int, Seed]],
        *,
        first: int = 0,
        last: int | None = None,
        progress: Progress | None = None,
    ) -> list[Particle]:
        """See Backend.train."""
        return self.backend.train(ticket, mask, training, seeds, first=first, last=last, progress=progress)
