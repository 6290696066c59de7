"""Random networks compute the same when exported, and the kernels touch no memory but their own."""

import subprocess
import sys
from pathlib import Path

import pytest

import networks
import sanitize
from networks import campaign, case, made

FAULTS = Path(networks.__file__).parent


@pytest.mark.slow
@pytest.mark.parametrize("first", [0, 1000])
def test_random_networks_compute_the_same_or_are_refused_with_a_reason(first):
    counts, wrong = campaign(0, range(first, first + 3), [0])
    assert not wrong
    assert counts["equal"]


@pytest.mark.slow
def test_a_wrong_number_is_found(tmp_path, monkeypatch):
    class Wrong(networks.KernelExecutor):
        def __call__(self, inputs):
            output = super().__call__(inputs)
            return output + 1e-3 * output.abs().max()

    assert case(made(0, 2), tmp_path / "network.safetensors", [0]).name == "equal"
    monkeypatch.setattr(networks, "KernelExecutor", Wrong)
    assert case(made(0, 2), tmp_path / "network.safetensors", [0]).name == "different"


def _sanitized(lanes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    if sanitize.environment(lanes) is None:
        pytest.skip("needs gcc with its sanitizers")
    command = [sys.executable, str(FAULTS / "sanitize.py"), "--lanes", str(lanes), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_the_sanitizers_find_nothing_in_random_networks():
    done = _sanitized(16, str(FAULTS / "networks.py"), "--cases", "2", "--lanes", "4,8,16")
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert " 0 wrong" in done.stdout


BROKEN = """
import os
import torch
from swamp.runtime.arena import FIELDS
from swamp.runtime.kernels import KernelConfig, KernelExecutor
from swamp.runtime.tracing import trace
executor = KernelExecutor(trace(torch.nn.Linear(5, 3), torch.ones(2, 5)), KernelConfig(4))
steps = executor.regions[0].lowered.steps
for step, change in ((0, 0), (0, -200), (-1, 1)):
    pid = os.fork()
    if pid == 0:
        steps[step, FIELDS.index("out")] += change
        executor([torch.ones(4, 5)])
        os._exit(0)
    print("died" if os.waitpid(pid, 0)[1] else "survived", flush=True)
"""


@pytest.mark.slow
def test_the_sanitizers_find_a_kernel_that_touches_other_memory_and_nothing_in_one_that_does_not():
    """One that is as it was, one that writes before its memory, and one that writes after it."""
    done = _sanitized(8, "-c", BROKEN)
    assert done.stdout.split() == ["survived", "died", "died"]
    assert done.stderr.count("ERROR: AddressSanitizer") == 2
