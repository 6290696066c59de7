"""World: the processes that torchrun started together. Small words between them, and who of them lives.

Words are JSON in the store that torchrun keeps for the job. They are looked for again and again and never waited for
inside torch: so whoever waits still hears signals, and notices a process that died or froze. Tensors go through the
process group, which is entered only when the other side is known to come.
"""

import fcntl
import json
import os
import socket
import struct
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage]
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.rendezvous import rendezvous  # pyright: ignore[reportUnknownVariableType]

from swamp.backends.beat import Beat, Member, Pulse
from swamp.errors import Interrupted, RankFailed, SwampError

T = TypeVar("T")
_SIOCGIFADDR = 0x8915
_FAREWELL = 25.0
"""Seconds that rank 0 waits for the others to save and leave: torchrun kills what is left 30 s after a signal."""


class JobEnded(SwampError):  # noqa: N818
    """Rank 0 has ended the job, and has said why; `exit_code` is its own."""

    def __init__(self, code: int) -> None:
        super().__init__("rank 0 ended the job.")
        self.exit_code = code


def ranks() -> int:
    """Number of processes of this job: 1 where torchrun started none."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process's place among them: 0 leads, prints and writes."""
    return int(os.environ.get("RANK", "0")) if ranks() > 1 else 0


class World:
    """All processes of the job, seen from one of them.

    asked: set from outside (by a signal) to end; whoever waits raises Interrupted then.
    agreed: set when a training is to save and stop; later than `asked`, where several ranks train one particle and
    must stop at the same step.
    patience: seconds without a sign of life after which a process counts as lost.
    """

    def __init__(self, store: Any, rank: int, size: int, asked: Event, patience: float = 120.0) -> None:
        self.store, self.rank, self.size = store, rank, size
        self.asked, self.agreed = asked, Event()
        self.patience = patience
        self.meshes: dict[int, DeviceMesh] = {}
        self.me = Member.here(rank)
        self.members = [self.me]
        self.over: int | None = None
        self.pulse = Pulse(store, rank, range(size) if rank == 0 else [0], self._look)

    @classmethod
    def meet(cls, asked: Event, patience: float) -> "World":
        """Find the store of the job that torchrun described in the environment, and say that this rank is there."""

        def look() -> None:
            if asked.is_set():
                raise Interrupted("stopped while the ranks met.")

        try:
            wait = timedelta(seconds=_meeting(patience))
            store, rank, size = _meanwhile(lambda: next(rendezvous("env://", timeout=wait)), look)
        except RuntimeError as error:
            raise RankFailed(
                f"the first host is not there: nothing answers at {_first_host()} ({_short(error)})."
            ) from error
        return cls(PrefixStore(f"swamp/{_attempt()}", store), rank, size, asked, patience)

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Wait for all ranks, and learn who they are. Raises SwampError naming those whose `facts` differ."""
        self.post("hello", {"member": asdict(self.me), "facts": facts})
        until = time.monotonic() + _meeting(self.patience)

        def check() -> None:
            if self.over is not None:
                raise JobEnded(self.over)
            if self.asked.is_set():
                raise Interrupted("stopped while the ranks met.")
            if time.monotonic() > until:
                raise SwampError("not all ranks came: start as many as torchrun was told of, on every host.")

        hellos = self.hear("hello", range(self.size), check)
        self.members = [Member(**hellos[rank]["member"]) for rank in range(self.size)]
        _refuse_differences({self.members[rank]: hello["facts"] for rank, hello in sorted(hellos.items())})

    def connect(self) -> None:
        """Open the connections that tensors take: gloo, and NCCL where there are GPUs."""
        _choose_interface()
        try:
            _meanwhile(
                lambda: dist.init_process_group(
                    "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
                    store=PrefixStore(f"groups/{_attempt()}", _apart(self.store)),
                    rank=self.rank,
                    world_size=self.size,
                    timeout=timedelta(seconds=self.patience),
                ),
                self.check,
            )
        except RuntimeError as error:
            raise self.blame(error) from error

    def mesh(self, groups: int) -> DeviceMesh:
        """The ranks as ("particle", "data"): so many groups of equal size. All ranks ask for it at the same time."""
        if groups not in self.meshes:
            size = self.size // groups
            layout = torch.arange(groups * size).view(groups, size)
            kind = "cuda" if torch.cuda.is_available() else "cpu"
            self.meshes[groups] = DeviceMesh(kind, layout, mesh_dim_names=("particle", "data"))
        return self.meshes[groups]

    def post(self, name: str, value: Any) -> None:
        """Let all others find `value` under `name` and this rank. Raises RankFailed where there is nobody to tell."""
        with self._reached():
            self.store.set(f"{name}/{self.rank}", json.dumps(value))

    def find(self, name: str, rank: int) -> Any:
        """What `rank` posted under `name`, in a list of one; an empty list while there is nothing."""
        key = f"{name}/{rank}"
        with self._reached():
            return [json.loads(self.store.get(key))] if self.store.check([key]) else []

    def beats(self) -> dict[int, tuple[Beat, float]]:
        """What the others said last of themselves, and how many seconds ago."""
        with self._reached():
            return self.pulse.read()

    def hear(self, name: str, ranks: Iterable[int], check: Callable[[], None] | None = None) -> dict[int, Any]:
        """What each of `ranks` posts under `name`, waiting for it.

        Raises RankFailed where a process is gone, JobEnded where rank 0 ended the job, Interrupted when asked to stop.
        """
        heard: dict[int, Any] = {}
        wanted, pause = list(ranks), 0.002
        while True:
            for rank in wanted:
                if rank not in heard and (found := self.find(name, rank)):
                    heard[rank] = found[0]
            if len(heard) == len(wanted):
                return heard
            (check or self.check)()
            time.sleep(pause)
            pause = min(0.05, pause * 1.5)

    def check(self) -> None:
        """Raise JobEnded, Interrupted or RankFailed where there is reason to. Cheap enough for every step."""
        if self.over is not None:
            raise JobEnded(self.over)
        if self.asked.is_set():
            raise Interrupted("stopped.")
        if self.pulse.broken:
            raise self.store_lost(self.pulse.broken)
        for member in self.members:
            if member.rank not in self.pulse.latest:
                continue
            beat, silent = self.beats()[member.rank]
            if beat.left is not None:
                raise Interrupted(f"{member} {beat.left}.")
            if member.is_dead(self.me):
                raise RankFailed(f"{member} died.")
            if silent > self.patience:
                raise RankFailed(f"{member} has been silent for {silent:.0f} s: it froze, or its host is gone.")

    def store_lost(self, error: Exception) -> RankFailed:
        """The error for a store that does not answer."""
        if isinstance(error, RankFailed):
            return error
        first = f"{self.members[0]}, or " if self.rank else ""
        return RankFailed(
            f"{first}torchrun on the first host, is gone: nothing answers at {_first_host()} ({_short(error)})."
        )

    def blame(self, error: RuntimeError) -> SwampError | RuntimeError:
        """The process that is gone, where that is why a transfer failed with `error`; else the error itself."""
        others = [member for member in self.members if member.rank in self.pulse.latest]
        # Closed connections wake those that wait for this rank inside torch.
        if dist.is_initialized():
            dist.destroy_process_group()
        try:
            gone = self.pulse.missing(others, self.me, 6.0)
        except RuntimeError as lost:
            return self.store_lost(lost)
        return RankFailed(f"{' and '.join(map(str, gone))} died.") if gone else error

    def end(self, code: int) -> list[Member]:
        """Rank 0: end the job for all, wait until they have saved and left; those that are gone without a word."""
        with suppress(RuntimeError, RankFailed):
            self.post("over", code)
            self.pulse.read(now=True)
            return self.pulse.missing(self.members[1:], self.me, _FAREWELL)
        return []

    def leave(self, why: str) -> None:
        """Say the last word and close the connections."""
        self.pulse.end(why)
        if dist.is_initialized():
            dist.destroy_process_group()

    @contextmanager
    def _reached(self) -> Generator[None]:
        """Around every use of the store: it is gone when the process that keeps it is."""
        try:
            yield
        except RuntimeError as error:
            raise self.store_lost(error) from error

    def _look(self) -> None:
        if self.rank and self.over is None and (found := self.find("over", 0)):
            self.over = int(found[0])
            # A training in progress hears of it at its next step, and saves.
            self.asked.set()


def _apart(store: Any) -> Any:
    """A connection of its own to the same store: while torch waits in one, it lets nobody else ask there."""
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    if not isinstance(store, TCPStore):
        return store
    return TCPStore(store.host, store.port, is_master=False, wait_for_workers=False)


def _meanwhile(work: Callable[[], T], look: Callable[[], None]) -> T:
    """What `work` gives, which waits inside torch, deaf to signals and to who is gone; `look` may raise meanwhile.

    Then the work is left to itself in its thread, which ends with the process.
    """
    answers: SimpleQueue[tuple[Any, Exception | None]] = SimpleQueue()

    def wait() -> None:
        try:
            answers.put((work(), None))
        except Exception as error:
            answers.put((None, error))

    Thread(target=wait, daemon=True).start()
    while True:
        try:
            found, error = answers.get(timeout=0.1)
        except Empty:
            look()
            continue
        if error is not None:
            raise error
        return found


def _meeting(patience: float) -> float:
    """Seconds in which all ranks must have come."""
    return max(patience, 300.0)


def _first_host() -> str:
    return f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"


def _attempt() -> str:
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def _refuse_differences(facts: Mapping[Member, Mapping[str, Any]]) -> None:
    """Other versions round differently: what such ranks train together is no one's result."""
    names = list(dict.fromkeys(name for given in facts.values() for name in given))
    wrong: list[str] = []
    for name in names:
        found: dict[str, list[str]] = {}
        for member, given in facts.items():
            found.setdefault(str(given.get(name)), []).append(str(member))
        if len(found) > 1:
            wrong.append(f"{name} is " + ", ".join(f"{value} on {' and '.join(who)}" for value, who in found.items()))
    if wrong:
        raise SwampError(f"the ranks of this job are not alike: {'; '.join(wrong)}. Make them alike and start again.")


def _choose_interface() -> None:
    """Have gloo use the interface that leads to the first host: what a host's name resolves to is often another."""
    if "GLOO_SOCKET_IFNAME" in os.environ or "MASTER_ADDR" not in os.environ or not hasattr(socket, "if_nameindex"):
        return
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Nothing is sent: connecting a datagram socket only looks the route up.
        probe.connect((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
        mine = probe.getsockname()[0]
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                if socket.inet_ntoa(answer[20:24]) == mine:
                    os.environ["GLOO_SOCKET_IFNAME"] = name
                    return


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:120]
