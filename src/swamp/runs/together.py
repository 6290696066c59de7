"""A run that the processes of a torchrun job do together: rank 0 leads it, the others serve."""

import os
import signal
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from threading import Event

from swamp.algorithms import Cycle
from swamp.backends import Choice, JobEnded, Member, World, rank, ranks
from swamp.errors import Interrupted, RankFailed, SwampError, as_swamp_error
from swamp.runs.config import RunConfig
from swamp.runs.environment import facts
from swamp.runs.overview import Overview


def restarted() -> bool:
    """Whether torchrun has started this job again after one of its ranks died."""
    return ranks() > 1 and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def one_voice() -> Generator[None]:
    """Around a command: under torchrun rank 0 speaks for all, and each rank ends with an exit code of its own.

    What the others print goes nowhere, but for the traceback of a fault.
    """
    if ranks() == 1:
        yield
        return
    try:
        with ExitStack() as stack:
            if rank() > 0:
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield
    finally:
        # torchrun ends all as soon as one has ended badly; this one is about to end by itself.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def joined(config: RunConfig, device: str, path: Path, stop: Event) -> Generator[World | None]:
    """Meet the other ranks, and leave them at the end; None where there are none.

    Raises SwampError where the ranks differ. On rank 0 whatever ends the block ends the job for all.
    """
    if ranks() == 1:
        yield None
        return
    world = World.meet(stop, config.heartbeat_seconds)
    with _leading(world, path) if world.rank == 0 else _serving(world, path):
        world.compare({**facts(device), "configuration": config.digest()})
        world.connect()
        yield world


def prepared(world: World | None) -> None:
    """Rank 0: wait until all ranks have their data and network. Raises SwampError with what one of them lacks."""
    if world is not None:
        for rank, problem in world.hear("prepared", range(1, world.size)).items():
            if problem:
                raise SwampError(f"{world.members[rank]}: {problem}")


class Nobody:
    """Reporter of a rank that serves: rank 0 relays its steps."""

    def started(self, run: Overview) -> None:
        """Nothing to say."""

    def chosen(self, choice: Choice) -> None:
        """Nothing to say."""

    def training(self, cycle: int | None, index: int, count: int, step: int, total: int) -> None:
        """Nothing to say."""

    def finished(self, cycle: Cycle) -> None:
        """Nothing to say."""


@contextmanager
def _leading(world: World, path: Path) -> Generator[None]:
    try:
        yield
    except BaseException as error:
        told = as_swamp_error(error)
        gone = world.end(told.exit_code if told else 1)
        world.leave("ended the job")
        # A signal from torchrun is most often its answer to a rank that died.
        if isinstance(error, RankFailed) or (isinstance(error, Interrupted) and gone):
            raise _lost(error, gone, path) from error
        raise
    world.end(0)
    world.leave("finished")


@contextmanager
def _serving(world: World, path: Path) -> Generator[None]:
    why = "failed"
    try:
        yield
        why = "finished"
    except JobEnded:
        why = "finished"
        raise
    except Interrupted:
        why = "was stopped"
        if world.members[0].is_dead(world.me):
            _say_for_rank_0(world, _lost(None, [world.members[0]], path))
        raise
    except RankFailed as error:
        _say_for_rank_0(world, _lost(error, [], path))
        raise
    finally:
        world.leave(why)


def _lost(error: BaseException | None, gone: list[Member], path: Path) -> RankFailed:
    what = str(error) if isinstance(error, RankFailed) else f"{' and '.join(map(str, gone))} died."
    return RankFailed(
        f"{what} What was finished is kept. Go on, with any number of ranks: "
        f"torchrun --nproc-per-node=... -m swamp resume {path} (or, with one process, swamp resume {path})"
    )


def _say_for_rank_0(world: World, error: RankFailed) -> None:
    """Only rank 0 speaks; where it is gone, the next one does."""
    if world.rank == 1:
        assert sys.__stderr__ is not None
        sys.__stderr__.write(f"swamp: {error}\n")
