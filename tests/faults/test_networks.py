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
    counts, wrong = campaign(0, range(first, first + 6), [0])
    assert not wrong
    assert counts["equal"]


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
import torch
from swamp.runtime.arena import FIELDS
from swamp.runtime.kernels import KernelConfig, KernelExecutor
from swamp.runtime.tracing import trace
executor = KernelExecutor(trace(torch.nn.Linear(5, 3), torch.ones(2, 5)), KernelConfig(4))
steps = executor.regions[0].lowered.steps
steps[{step}, FIELDS.index("{field}")] += {change}
executor([torch.ones(4, 5)])
print("survived")
"""


@pytest.mark.slow
@pytest.mark.parametrize(("step", "field", "change"), [(0, "out", -200), (-1, "out", 1)])
def test_the_sanitizers_find_a_kernel_that_touches_other_memory(step, field, change):
    done = _sanitized(8, "-c", BROKEN.format(step=step, field=field, change=change))
    assert "survived" not in done.stdout
    assert "AddressSanitizer" in done.stderr


@pytest.mark.slow
def test_the_sanitizers_find_nothing_in_a_kernel_that_is_not_broken():
    assert "survived" in _sanitized(8, "-c", BROKEN.format(step=0, field="out", change=0)).stdout
