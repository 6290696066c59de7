"""A run executed by the ranks of a torchrun job: rank 0 runs the cycle loop, the other ranks train particles for it."""

import os
import signal
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from shlex import quote
from threading import Event

from swamp.backends.coordinator import Coordinator, JobEnded, Member
from swamp.backends.rank_variables import restarts, world_size
from swamp.backends.rendezvous import close_process_group
from swamp.errors import Interrupted, RankFailed, as_swamp_error
from swamp.runs.config import RunConfig
from swamp.runs.environment import facts


def restarted() -> bool:
    """Whether torchrun has started this job again after a rank failed."""
    return world_size() > 1 and restarts() > 0


@contextmanager
def only_rank_0_prints(rank: int) -> Generator[None]:
    """Context of a command of this rank under torchrun: the output of the ranks other than 0 is discarded."""
    if world_size() == 1:
        yield
        return
    try:
        with ExitStack() as stack:
            if rank > 0:
                nowhere = stack.enter_context(Path(os.devnull).open("w"))
                stack.enter_context(redirect_stdout(nowhere))
                stack.enter_context(redirect_stderr(nowhere))
            yield
    finally:
        # torchrun terminates all ranks as soon as one has failed; this one is about to exit with its own code.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


@contextmanager
def distributed_job(config: RunConfig, device: str, path: Path, stop: Event) -> Generator[Coordinator | None]:
    """Context in which the ranks of a torchrun job are connected; None without torchrun.

    Raises SwampError if the ranks differ. Whatever ends the context on rank 0 ends the job for all ranks.
    """
    if world_size() == 1:
        yield None
        return
    coordinator = Coordinator.rendezvous(stop, config.heartbeat_seconds)
    with _leading(coordinator, path) if coordinator.rank == 0 else _following(coordinator, path):
        coordinator.require_same({**facts(device), "configuration": config.digest()})
        yield coordinator


def wait_until_prepared(coordinator: Coordinator | None) -> None:
    """Rank 0: wait until all ranks have loaded data and network. Raises the error of a rank that cannot."""
    if coordinator is not None:
        for other in range(1, coordinator.size):
            coordinator.wait(f"prepared/{other}")


@contextmanager
def _leading(coordinator: Coordinator, path: Path) -> Generator[None]:
    try:
        yield
    except BaseException as error:
        failure, cause = coordinator.failure, error
        if isinstance(error, Interrupted) and failure is not None and not isinstance(failure, Interrupted):
            cause = failure
        if not isinstance(cause, Interrupted):
            close_process_group()  # wakes up ranks that wait for this one
        known = as_swamp_error(cause)
        gone = coordinator.end(known.exit_code if known else 1)
        coordinator.close("ended the job")
        # torchrun sends a signal to all ranks most often because one has died.
        if isinstance(cause, RankFailed) or (isinstance(cause, Interrupted) and gone):
            raise _rank_failed(cause, gone, path) from error
        raise cause from error.__cause__
    coordinator.end(0)
    coordinator.close("finished")


@contextmanager
def _following(coordinator: Coordinator, path: Path) -> Generator[None]:
    left = "failed"
    try:
        yield
        left = "finished"
    except JobEnded:
        left = "finished"
        raise
    except Exception as error:
        final = coordinator.abandon(error)
        left = "was stopped" if isinstance(final, Interrupted) else "failed"
        gone = [coordinator.members[0]] if coordinator.members[0].is_dead(coordinator.me) else []
        if coordinator.rank == 1 and (isinstance(final, RankFailed) or gone):
            # In place of rank 0, which prints all other messages.
            assert sys.__stderr__ is not None
            sys.__stderr__.write(f"swamp: {_rank_failed(final, gone, path)}\n")
        raise final from error
    finally:
        coordinator.close(left)


def _rank_failed(error: BaseException, gone: list[Member], path: Path) -> RankFailed:
    what = str(error) if isinstance(error, RankFailed) else f"{' and '.join(map(str, gone))} died."
    run = quote(str(path))
    return RankFailed(
        f"{what} Everything finished is kept. To continue, with any number of ranks: "
        f"torchrun --nproc-per-node=... -m swamp resume {run} (or, with one process, swamp resume {run})"
    )
