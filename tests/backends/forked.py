"""Ranks as forked processes that serve, while the test itself leads."""

import gc
import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from threading import Event
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed import PrefixStore, TCPStore

from swamp.backends import Particle, Progress, Ranks, Sequential, World, serve
from swamp.errors import SwampError
from swamp.training import Seed, Task, Training

TRAINING = Training(epochs=4, batch_size=6, swa_fraction=0.5, lr=0.1)
SEEDS = [(index, Seed(0).at("cycle", 1, "particle", index)) for index in (0, 1, 2)]


class Together:
    """What the processes of a test have in common."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.model, self.task = model, task
        self.patience = 60.0
        self.facts: Callable[[int], Mapping[str, Any]] = lambda rank: {"torch": "2.0"}
        self.served: Callable[[World], Progress] = lambda world: Progress()
        self.pids: list[int] = []

    def shared(self, shard: Any) -> Sequential:
        return Sequential(self.model, self.task, shard=shard)

    def world(self, store: TCPStore, rank: int, size: int) -> World:
        world = World(PrefixStore("test", store), rank, size, Event(), self.patience)
        world.compare(self.facts(rank))
        world.connect()
        return world

    def serve(self, port: int, rank: int, size: int) -> None:
        store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=30))
        world = self.world(store, rank, size)
        try:
            serve(world, lambda choice: Sequential(self.model, self.task), lambda at: self.served(world), self.shared)
        except SwampError:
            world.leave("stopped")
        else:
            world.leave("finished")

    @contextmanager
    def led(self, size: int, particles: int = 99, **options: Any) -> Iterator[Ranks]:
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
                    self.serve(int(os.read(told, 5)), rank, size)
                except BaseException:
                    traceback.print_exc()
                finally:
                    os._exit(0)
            self.pids.append(pid)
        gc.unfreeze()
        world = None
        try:
            store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
            os.write(tell, f"{store.port:05}".encode() * (size - 1))
            world = self.world(store, 0, size)
            inner = Sequential(self.model, self.task)
            yield Ranks(inner, world, particles=particles, shared=self.shared, **options)
        finally:
            if world is not None:
                world.end(0)
                world.leave("finished")
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


class Heard(Progress):
    """Progress with an address, so that the serving ranks make theirs, which a test chooses."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, int, int]] = []

    @property
    def address(self) -> Any:
        return "here"

    def elsewhere(self, index: int, step: int, total: int) -> None:
        self.steps.append((index, step, total))
