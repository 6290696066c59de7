"""Makes the run directories of one version: PYTHONPATH=CHECKOUT/src python tests/data/make.py tests/data/NAME.

A finished run, and one that was stopped in its second cycle: one particle finished, one in training.
"""

import sys
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from threading import Event

from swamp.algorithms import Plan
from swamp.cli.progress import Quiet
from swamp.datasets import DataOptions
from swamp.errors import Interrupted
from swamp.runs import RunConfig, start
from swamp.training import Training


class StopAt(Quiet):
    def __init__(self, step, stop):
        self.left, self.stop = step, stop

    def training(self, cycle, index, count, step, total):
        self.left -= 1
        if self.left == 0:
            self.stop.set()


plan = Plan("swamp", sparsity=0.5, prune_fraction=(0.5,), particles=(2,), ticket_epochs=1, barrier_threshold=1.0)
training, data = Training(epochs=2, batch_size=50, lr=0.05, swa_fraction=0.5), DataOptions(examples=200)
config = RunConfig("tiny", "digits", "mlp-6", plan, training, data, threads=1, snapshot_seconds=1e-9)
# The first version had one way to train particles.
if "backend" in {field.name for field in fields(RunConfig)}:
    config = RunConfig(**{**config.__dict__, "backend": "sequential"})
folder, stop = Path(sys.argv[1]), Event()
start(config, folder / "finished", Quiet(), Event())
steps = -(-160 // 50)
with suppress(Interrupted):
    start(config, folder / "unfinished", StopAt(steps + 2 * steps * 3 + 3, stop), stop)
