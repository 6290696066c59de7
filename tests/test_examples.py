"""The worked examples of docs/howto/integrations.md run as they are, offline."""

import importlib.util
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
TRAINERS = [path.stem for path in sorted(EXAMPLES.glob("*.py")) if path.stem != "serve"]


def example(name: str) -> Any:
    specification = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.slow_cases(
    "lightning_trainer", "huggingface_trainer", "gan_own_loop", "distillation", "stable_baselines3_agent"
)
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")
@pytest.mark.filterwarnings("ignore:.*the error barrier between particles")  # of the dense cycle
@pytest.mark.parametrize("name", TRAINERS)
def test_an_example_runs_and_ends_with_its_zeros_kept(name, tmp_path, capsys):
    with torch.random.fork_rng():
        example(name).main(*([] if name == "plain_pytorch" else [tmp_path]))
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith("zeros kept: True")
    reached = [line for line in lines if line.startswith("sparsity ")]
    assert len(reached) >= 3
    assert float(reached[-1].split()[-1]) > 0.6


SHORT = sorted((EXAMPLES / "short").glob("*.py"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", SHORT, ids=[path.stem for path in SHORT])
def test_an_own_model_is_pruned_in_fifteen_lines(path: Path, capsys):
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    assert len(lines) <= 15
    with torch.random.fork_rng():
        runpy.run_path(str(path))
    assert "SparseModel(" in capsys.readouterr().out
