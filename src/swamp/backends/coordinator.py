"""Coordinator: control messages between the ranks of a torchrun job, and the detection of failed ranks.

Messages are JSON in the key-value store that torchrun keeps for the job. They are polled, never waited for inside
torch, so that a waiting rank reacts to signals and to failures.
"""

import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, TypeVar

import msgspec
from torch.distributed.device_mesh import DeviceMesh

from swamp.backends.rendezvous import close_process_group, connect_store, first_host, open_mesh
from swamp.errors import Interrupted, RankFailed, SwampError, as_swamp_error, first_line

_T = TypeVar("_T")
_HEARTBEAT = 0.25
"""Seconds between two heartbeats of a rank."""
_GONE = 5.0
"""Seconds without a heartbeat after which a rank counts as dead, once the job has failed for another reason."""
_FAREWELL = 25.0
"""Seconds that rank 0 waits for the others to save and leave: torchrun kills the rest 30 s after a signal."""
_RENDEZVOUS = 300.0
"""Seconds, at least, in which all ranks must have started."""


class JobEnded(SwampError):  # noqa: N818
    """Rank 0 has ended the job, and has said why; `exit_code` is its own."""

    def __init__(self, code: int) -> None:
        super().__init__("rank 0 ended the job.")
        self.exit_code = code


@dataclass(frozen=True)
class Member:
    """One process of the job, as error messages name it."""

    rank: int
    host: str
    pid: int
    machine: str = ""
    """Boot and process namespace of the host, within which `pid` is unique."""

    @classmethod
    def here(cls, rank: int) -> "Member":
        """This process."""
        boot = namespace = ""
        with suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            namespace = os.readlink("/proc/self/ns/pid")
        return cls(rank, socket.gethostname(), os.getpid(), f"{boot} {namespace}" if namespace else "")

    def is_dead(self, seen_from: "Member") -> bool:
        """Whether the process has ended; False for any process of another machine."""
        if not self.machine or self.machine != seen_from.machine:
            return False
        try:
            state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return True
        return state in "ZX"  # ended, and not yet collected by its parent

    def __str__(self) -> str:
        return f"rank {self.rank} (host {self.host}, pid {self.pid})"


@dataclass(frozen=True)
class Status:
    """State of a rank, published with every heartbeat."""

    heartbeat: int = 0
    job: int = 0
    """Number of the train job that the rank works on."""
    step: tuple[int, int, int] | None = None
    """(particle, step, total steps) of its training."""
    diverged: tuple[tuple[int, str, int], ...] = ()
    """(particle, message, step) of the job's diverged trainings."""
    done: bool = False
    """Whether its part of the job is finished and stored."""
    error: tuple[str, str] | None = None
    """(kind, message) of the error that ended its work."""
    left: str | None = None
    """Why it has left the job."""


class Coordinator:
    """All processes of the job, as one of them sees them.

    Args:
        store: torch.distributed key-value store that all ranks share.
        rank: rank of this process.
        size: number of ranks.
        stop: set by a signal, and here when a rank fails or rank 0 ends the job. Trainings then save and stop.
        timeout: seconds without a heartbeat after which a rank counts as failed.
    """

    def __init__(self, store: Any, rank: int, size: int, stop: Event, timeout: float = 120.0) -> None:
        self.store, self.rank, self.size, self.stop, self.timeout = store, rank, size, stop, timeout
        self.agreed = Event()
        """Set when all ranks that train one particle stop at the same step; `stop` may be set at different steps."""
        self.me = Member.here(rank)
        self.members = [self.me]
        self.failure: Exception | None = None
        self.status = Status()
        self.step: tuple[int, int, int] | None = None
        """(particle, step, total steps) of this rank's training."""
        self.statuses: dict[int, Status] = {}
        self._changed: dict[int, float] = {}
        self._exit_code: int | None = None
        self._meshes: dict[int, DeviceMesh] = {}
        self._lock, self._closed = Lock(), Event()
        self.update()
        self._thread = Thread(target=self._beat, name="swamp-heartbeat", daemon=True)
        self._thread.start()

    @classmethod
    def rendezvous(cls, stop: Event, timeout: float) -> "Coordinator":
        """Connect to the store that torchrun describes in the environment. Raises RankFailed if there is none."""

        def check() -> None:
            if stop.is_set():
                raise Interrupted("stopped while the ranks started.")

        try:
            store, rank, size = connect_store(max(timeout, _RENDEZVOUS), check)
        except RuntimeError as error:
            raise RankFailed(f"no connection to the first host at {first_host()} ({_short(error)}).") from error
        return cls(store, rank, size, stop, timeout)

    def require_same(self, facts: Mapping[str, Any]) -> None:
        """Wait for all ranks. Raises SwampError naming the ranks that differ in `facts`."""
        self.publish(f"hello/{self.rank}", {"member": asdict(self.me), "facts": facts})
        until = time.monotonic() + max(self.timeout, _RENDEZVOUS)
        hellos: list[dict[str, Any]] = []
        while len(hellos) < self.size:
            try:
                hellos.append(self.wait(f"hello/{len(hellos)}", until))
            except TimeoutError as error:
                raise SwampError(
                    f"rank {len(hellos)} did not start: start torchrun on every host, {self.size} ranks in all."
                ) from error
        self.members = [Member(**hello["member"]) for hello in hellos]
        _refuse_differences(self.members, [hello["facts"] for hello in hellos])

    def publish(self, key: str, value: Any) -> None:
        """Store `value` as JSON. Raises RankFailed if the store is gone."""
        self._reach(lambda: self.store.set(key, json.dumps(value)))

    def wait(self, key: str, until: float | None = None) -> Any:
        """The value of `key`, as soon as it is published. Raises as `poll`."""
        return self.poll(lambda: self._get(key), until)

    def poll(self, found: Callable[[], _T | None], until: float | None = None) -> _T:
        """Call `found` until it returns a value.

        Raises:
            JobEnded: rank 0 ended the job.
            RankFailed: a rank failed (or the error that it reported).
            Interrupted: this rank was asked to stop.
            TimeoutError: nothing was found before the time `until` (time.monotonic).
        """
        pause = 0.002
        while (value := found()) is None:
            self.check()
            if until is not None and time.monotonic() > until:
                raise TimeoutError
            time.sleep(pause)
            pause = min(0.05, pause * 1.5)
        return value

    def check(self) -> None:
        """Raise JobEnded, RankFailed or Interrupted if there is reason to; fast enough for every training step."""
        if self._exit_code is not None:
            raise JobEnded(self._exit_code)
        if self.failure is not None:
            raise self.failure
        if self.stop.is_set():
            raise Interrupted("stopped.")

    def fail(self, error: Exception) -> None:
        """Stop this rank's training; `check` raises the first `error` from now on."""
        self.failure = self.failure or error
        self.stop.set()

    def update(self, **changes: Any) -> None:
        """Change the status of this rank, and publish it at once. A new `step` is published with the next heartbeat."""
        with self._lock:
            beat = self.status.heartbeat + 1
            self.status = replace(self.status, **changes, heartbeat=beat, step=self.step)
            self.publish(f"status/{self.rank}", msgspec.to_builtins(self.status))

    def abandon(self, error: Exception) -> Exception:
        """End the work of a rank other than 0 after `error`; returns the error to raise.

        Unless this rank was asked to stop, it reports the error and waits until rank 0 has ended the job.
        """
        cause = self.failure or error
        if not isinstance(cause, Interrupted) and self._exit_code is None:
            known = as_swamp_error(cause)
            kind = next((kind.__name__ for kind in (RankFailed, SwampError) if isinstance(known, kind)), "fault")
            self.update(error=(kind, str(known) if known else "".join(traceback.format_exception(cause))))
            close_process_group()
            while self._exit_code is None and 0 in self.statuses and self.statuses[0].left is None:
                if self._is_gone(self.members[0], self.timeout):
                    break
                time.sleep(0.02)
        return cause if self._exit_code is None else JobEnded(self._exit_code)

    def mesh(self, groups: int) -> DeviceMesh:
        """See open_mesh. Raises RankFailed naming a rank that is gone."""
        try:
            if groups not in self._meshes:
                place = self.rank, self.size
                self._meshes[groups] = open_mesh(self.store, *place, groups, self.timeout, self.check)
            return self._meshes[groups]
        except RuntimeError as error:
            raise self.attribute_failure(error) from error

    def attribute_failure(self, error: RuntimeError) -> Exception:
        """Why a transfer failed with `error`: the failure of another rank, or else `error` itself."""
        close_process_group()
        self.timeout = _GONE
        until = time.monotonic() + _GONE + 1
        while self.failure is None and self._exit_code is None and time.monotonic() < until:
            time.sleep(0.02)
        return self.failure or error

    def end(self, exit_code: int) -> list[Member]:
        """Rank 0: end the job, wait until the others have saved and left; returns the ranks that are gone instead."""
        waiting, gone = set(self.members[1:]), list[Member]()
        until = time.monotonic() + _FAREWELL
        self._exit_code = exit_code
        with suppress(RankFailed):
            self.publish("ended", exit_code)
            while waiting and time.monotonic() < until:
                self.read()
                gone += [m for m in waiting if self.statuses[m.rank].left is None and self._is_gone(m, _GONE)]
                waiting -= {m for m in waiting if m in gone or self.statuses[m.rank].left is not None}
                time.sleep(0.02)
        return sorted(gone, key=lambda member: member.rank)

    def close(self, why: str) -> None:
        """Publish the last status and close the connections."""
        self._closed.set()
        self._thread.join()
        with suppress(RankFailed):  # the store may be gone already
            self.update(left=why)
        close_process_group()

    def read(self) -> None:
        """Read the statuses of all other ranks."""
        others = [member.rank for member in self.members if member != self.me]
        keys = [f"status/{rank}" for rank in others]
        values: list[bytes] = self._reach(lambda: self.store.multi_get(keys)) if keys else []
        statuses = {rank: msgspec.json.decode(value, type=Status) for rank, value in zip(others, values, strict=True)}
        # Only the clock of this process is read: clocks of two hosts may differ.
        now = time.monotonic()
        for rank, status in statuses.items():
            if status != self.statuses.get(rank):
                self._changed[rank] = now
        self.statuses = statuses

    def _beat(self) -> None:
        while not self._closed.is_set():
            try:
                self.update()
                self.read()
                error = self._error_of_others()
                # Read after the statuses: the other ranks leave once the job has ended.
                if self.rank and self._exit_code is None and (code := self._get("ended")) is not None:
                    self._exit_code = code
                    self.stop.set()
                if error is not None and self._exit_code is None:
                    self.fail(error)
            except RankFailed as error:
                self.fail(error)
                return
            self._closed.wait(_HEARTBEAT)

    def _error_of_others(self) -> Exception | None:
        """The first error of another rank: an error that it reported, that it died or froze, or that it left."""
        others = [(self.members[rank], status) for rank, status in self.statuses.items()]
        for member, status in others:
            match status.error:
                case None:
                    continue
                case "RankFailed", text:
                    return RankFailed(text)
                case "SwampError", text:
                    return SwampError(f"{member}: {text}")
                case _, text:
                    return RuntimeError(f"{member} failed:\n{text}")
        for member, status in others:
            if status.left is None and self._is_gone(member, self.timeout):
                silent = time.monotonic() - self._changed[member.rank]
                froze = f"sent no heartbeat for {silent:.0f} s: it froze, or its host is gone"
                return RankFailed(f"{member} {'died' if member.is_dead(self.me) else froze}.")
        return next((Interrupted(f"{m} {status.left}.") for m, status in others if status.left is not None), None)

    def _is_gone(self, member: Member, seconds: float) -> bool:
        """Whether another rank has ended, or has sent no heartbeat for `seconds`."""
        return member.is_dead(self.me) or time.monotonic() - self._changed[member.rank] > seconds

    def _get(self, key: str) -> Any:
        """The value of `key`; None if it was not published. Raises RankFailed if the store is gone."""
        return self._reach(lambda: json.loads(self.store.get(key)) if self.store.check([key]) else None)

    def _reach(self, use: Callable[[], _T]) -> _T:
        """Use the store. Raises RankFailed if it is gone, with the process that keeps it."""
        try:
            return use()
        except RuntimeError as error:
            first = f"{self.members[0]}, or " if self.rank else ""
            raise RankFailed(
                f"{first}torchrun on the first host, is gone: no connection to {first_host()} ({_short(error)})."
            ) from error


def _refuse_differences(members: Sequence[Member], facts: Sequence[Mapping[str, Any]]) -> None:
    """Raise SwampError if ranks differ: other versions round differently."""
    differences: list[str] = []
    for name in dict.fromkeys(name for given in facts for name in given):
        found: dict[str, list[str]] = {}
        for member, given in zip(members, facts, strict=True):
            found.setdefault(str(given.get(name)), []).append(str(member))
        if len(found) > 1:
            values = ", ".join(f"{value} on {' and '.join(ranks)}" for value, ranks in found.items())
            differences.append(f"{name} is {values}")
    if differences:
        raise SwampError(
            f"the ranks of this job are not alike: {'; '.join(differences)}. Make them alike and start again."
        )


def _short(error: Exception) -> str:
    return first_line(error)[:120]
