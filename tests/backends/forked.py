"""Ranks as forked processes that follow, while the test itself is rank 0."""

import gc
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
import torch._dynamo  # optimizers import it: before the ranks are forked, or each of them does
from torch import nn
from torch.distributed import PrefixStore, TCPStore

from swamp.backends import Particle, Progress, Sequential
from swamp.backends.coordinator import Coordinator
from swamp.backends.distributed import Distributed, FolderProgress, follow
from swamp.training import Seed, Task, Training

TRAINING = Training(epochs=4, batch_size=6, swa_fraction=0.5, lr=0.1)
SEEDS = [(index, Seed(0).at("cycle", 1, "particle", index)) for index in (0, 1, 2)]


class Together:
    """What the processes of a test have in common."""

    def __init__(self, model: nn.Module, task: Task, folder: Path) -> None:
        self.model, self.task, self.folder = model, task, folder
        self.timeout = 60.0
        self.facts: Callable[[int], Mapping[str, Any]] = lambda rank: {"torch": "2.0"}
        self.followed: Callable[[Coordinator], Progress] = lambda coordinator: FolderProgress(self.folder)
        self.pids: list[int] = []

    def data_parallel(self, shard: Any) -> Sequential:
        return Sequential(self.model, self.task, shard=shard)

    def follow(self, port: int, rank: int, size: int) -> None:
        store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=30))
        coordinator = Coordinator(PrefixStore("test", store), rank, size, Event(), self.timeout)
        try:
            coordinator.require_same(self.facts(rank))
            follow(
                coordinator,
                self.folder,
                lambda choice: Sequential(self.model, self.task),
                lambda address: self.followed(coordinator),
                self.data_parallel,
            )
        except Exception as error:
            coordinator.abandon(error)
            coordinator.close("was stopped")
        else:
            coordinator.close("finished")

    @contextmanager
    def led(self, size: int, particles: int = 99, **options: Any) -> Iterator[Distributed]:
        # The store comes after the forks: a thread of it looks up who connects, and a child forked meanwhile would find
        # the lock of the C library's resolver taken for good.
        told, tell = os.pipe()
        gc.collect()
        # Process groups of earlier tests lose their threads in the fork: a child that collected them would crash.
        gc.freeze()
        for rank in range(1, size):
            pid = os.fork()
            if pid == 0:
                try:
                    self.follow(int(os.read(told, 5)), rank, size)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(0)
            self.pids.append(pid)
        gc.unfreeze()
        coordinator = None
        try:
            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
            os.write(tell, f"{store.port:05}".encode() * (size - 1))
            coordinator = Coordinator(PrefixStore("test", store), 0, size, Event(), self.timeout)
            coordinator.require_same(self.facts(0))
            inner = Sequential(self.model, self.task)
            yield Distributed(
                inner, coordinator, self.folder, particles=particles, data_parallel=self.data_parallel, **options
            )
        finally:
            if coordinator is not None:
                coordinator.end(0)
                coordinator.close("finished")
            for pid in self.pids:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            os.close(told)
            os.close(tell)


def assert_equal(ours: list[Particle], theirs: list[Particle], within: float = 0) -> None:
    for one, two in zip(ours, theirs, strict=True):
        assert (one.index, one.ticket, one.mask, one.averaged, one.steps) == (
            two.index,
            two.ticket,
            two.mask,
            two.averaged,
            two.steps,
        )
        assert one.losses == pytest.approx(two.losses, abs=within, rel=0)
        for name, value in two.weights.items():
            assert torch.allclose(one.weights[name], value, rtol=0, atol=within), name


class RemoteSteps(FolderProgress):
    """Keeps the steps that other ranks report."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.steps: list[tuple[int, int, int]] = []

    def on_remote_step(self, index: int, step: int, total: int) -> None:
        self.steps.append((index, step, total))
