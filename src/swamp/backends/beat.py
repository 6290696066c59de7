"""Signs of life: a thread that says that this process lives and how far it is, and what the others said last."""

import json
import os
import socket
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from swamp.errors import RankFailed

_EVERY = 0.25
_MISSING = 5.0
"""Seconds without a beat after which a process counts as gone, once the job has stopped for a reason not known yet."""


@dataclass(frozen=True)
class Member:
    """One process of the job, as errors name it."""

    rank: int
    host: str
    pid: int
    machine: str = ""
    """Where `pid` means something: the host's boot and its process namespace."""

    @classmethod
    def here(cls, rank: int) -> "Member":
        """This process."""
        boot = namespace = ""
        with suppress(OSError):
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            namespace = os.readlink("/proc/self/ns/pid")
        return cls(rank, socket.gethostname(), os.getpid(), f"{boot} {namespace}" if namespace else "")

    def is_dead(self, seen_from: "Member") -> bool:
        """Whether the process has ended; only ever known of one on the same machine."""
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
class Beat:
    """What a process said last of itself."""

    count: int
    at: tuple[int, int, int] | None = None
    """(particle, step, steps) of its training."""
    left: str | None = None
    """Why it has left the job."""


class Pulse:
    """Beats of this process, and the latest of the others with the time at which they changed.

    Only this process's clock is read: those of two hosts need not agree.
    """

    def __init__(self, store: Any, rank: int, ranks: Iterable[int], look: Callable[[], None]) -> None:
        self.store, self.rank, self.look = store, rank, look
        self.others = [other for other in ranks if other != rank]
        self.at: tuple[int, int, int] | None = None
        self.left: str | None = None
        self.broken: Exception | None = None
        self.count = 0
        now = time.monotonic()
        self.latest = {other: (Beat(0), now) for other in self.others}
        self.read_at = 0.0
        self.ended = Event()
        self.say()
        self.thread = Thread(target=self._run, name="swamp-beat", daemon=True)
        self.thread.start()

    def say(self) -> None:
        """One beat."""
        self.count += 1
        words: dict[str, Any] = {"count": self.count, "at": self.at, "left": self.left}
        self.store.set(f"beat/{self.rank}", json.dumps(words))

    def end(self, why: str) -> None:
        """The last beat."""
        self.ended.set()
        self.thread.join()
        self.left = why
        with suppress(RuntimeError):  # the store may be gone already
            self.say()

    def read(self, *, now: bool = False) -> dict[int, tuple[Beat, float]]:
        """Latest beat of every other process and the seconds since it changed; the store is asked now and then."""
        if now or time.monotonic() - self.read_at > _EVERY:
            self._read()
        moment = time.monotonic()
        return {rank: (beat, moment - since) for rank, (beat, since) in self.latest.items()}

    def missing(self, members: Iterable[Member], me: Member, patience: float) -> list[Member]:
        """Wait until all others have left, at most `patience` seconds; those that are gone without a word."""
        waiting, until = {member.rank: member for member in members}, time.monotonic() + patience
        gone: list[Member] = []
        while waiting and time.monotonic() < until:
            for rank, (beat, silent) in self.read(now=True).items():
                if rank in waiting and beat.left is not None:
                    del waiting[rank]
                elif rank in waiting and (silent > _MISSING or waiting[rank].is_dead(me)):
                    gone.append(waiting.pop(rank))
            time.sleep(0.02)
        return gone

    def _read(self) -> None:
        values = self.store.multi_get([f"beat/{rank}" for rank in self.others])
        self.read_at = time.monotonic()
        for rank, value in zip(self.others, values, strict=True):
            words = json.loads(value)
            beat = Beat(words["count"], words["at"] and tuple(words["at"]), words["left"])
            if beat != self.latest[rank][0]:
                self.latest[rank] = beat, self.read_at

    def _run(self) -> None:
        while not self.ended.wait(_EVERY):
            try:
                self.say()
                self.look()
            except (RuntimeError, RankFailed) as error:  # torch's errors of a store that is gone
                self.broken = error
                return
