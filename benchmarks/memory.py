"""Memory of each rank while all ranks train one particle of 20 million weights, replicated or sharded.

torchrun --standalone --nproc-per-node=2 benchmarks/memory.py [--sharded]
"""

import argparse
import gc
import os
import resource
import shutil
from collections.abc import Iterable
from pathlib import Path
from tempfile import gettempdir
from threading import Event
from typing import Any

import torch
from torch import Tensor, nn

from swamp.backends import Sequential, Ticket, TrainRequest
from swamp.backends.coordinator import Coordinator
from swamp.backends.distributed import Distributed, FolderProgress, follow
from swamp.masks import Mask
from swamp.masks.dtensor import to_local
from swamp.training import Seed, Task, Training
from swamp.training.optimizers import build_optimizer
from swamp.training.rng import isolated

TRAINING = Training(epochs=4, batch_size=64, swa_fraction=0.5, optimizer="adamw", lr=1e-3)


def problem() -> tuple[nn.Module, Task]:
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(256, 1024, generator=generator), torch.randint(0, 10, (256,), generator=generator)
    with isolated(Seed(0)):
        layers = [layer for _ in range(19) for layer in (nn.Linear(1024, 1024), nn.ReLU())]
        return nn.Sequential(*layers, nn.Linear(1024, 10)), Task.of(data, [(data[0][:2], data[1][:2])])


def tensors() -> int:
    """Bytes of all tensors of this process."""
    found = [to_local(thing).untyped_storage() for thing in gc.get_objects() if issubclass(type(thing), Tensor)]
    return sum({storage.data_ptr(): storage.nbytes() for storage in found}.values())


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Counted:
    """An optimizer factory whose optimizers count the tensors of this process after each step."""

    def __init__(self) -> None:
        self.bytes, self.resident, self.before = 0, 0, resident()

    def __call__(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = build_optimizer(parameters, TRAINING)

        def count(*step: Any) -> None:
            self.bytes, self.resident = max(self.bytes, tensors()), max(self.resident, resident())

        optimizer.register_step_post_hook(count)
        return optimizer

    def told(self, rank: int) -> None:
        held, steps, most = (n / 2**20 for n in (self.bytes, self.resident - self.before, peak() - self.before))
        print(
            f"rank {rank}: {held:,.0f} MiB of tensors after a step; "
            f"resident memory above the start: {steps:,.0f} MiB, peak {most:,.0f} MiB"
        )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sharded", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    coordinator = Coordinator.rendezvous(Event(), 600.0)
    # All ranks are on this machine; the port is unique to the job.
    folder = Path(gettempdir(), f"swamp-memory-{os.environ['MASTER_PORT']}")
    folder.mkdir(exist_ok=True)
    coordinator.require_same({"folder": str(folder)})
    model, task = problem()
    counted = Counted()

    def data_parallel(shard: Any) -> Sequential:
        return Sequential(model, task, counted, shard=shard)

    if coordinator.rank:
        follow(coordinator, folder, lambda choice: Sequential(model, task), FolderProgress, data_parallel)
    else:
        options = {"particles": 1, "data_parallel": data_parallel, "sharded": given.sharded}
        ranks = Distributed(Sequential(model, task), coordinator, folder, **options)
        ranks.train(TrainRequest(Ticket(model.state_dict(), 0), Mask.ones(model), TRAINING, [(0, Seed(0))]))
        coordinator.end(0)
        shutil.rmtree(folder)
    coordinator.close("finished")
    counted.told(coordinator.rank)


if __name__ == "__main__":
    main()
