"""Peak resident memory in MB of training ResNet-20 with `threads`: python benchmarks/peak.py resnet-20 PARTICLES."""

import re
import sys
from pathlib import Path

from particles import CASES, prepared
from swamp.backends import Threads, Ticket, TrainRequest
from swamp.training import Seed, Training

model, task, mask = prepared(CASES["resnet"])
seeds = [(index, Seed(0).at(index)) for index in range(int(sys.argv[2]))]
particles = Threads(model, task).train(
    TrainRequest(Ticket(model.state_dict(), 0), mask, Training(epochs=1, swa_fraction=0), seeds, last=3)
)
# Not getrusage: its peak includes the parent process, if that was larger.
print(int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024)
