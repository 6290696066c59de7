"""The worked examples of docs/howto/integrations.md run as they are, offline."""

from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"
TRAINERS = [path.stem for path in sorted(EXAMPLES.glob("*.py")) if path.stem != "serve"]


SMALLER = {
    "forecaster": ("epochs=6", "epochs=2"),
    "gan_own_loop": ("epochs=4", "epochs=2"),
    "huggingface_trainer": ("encoded(512, 1)", "encoded(192, 1)"),
}
"""Less work of the same kind in the test of an example."""


def executed(path: Path) -> dict[str, Any]:
    """Run an example with less work; returns its names."""
    text = path.read_text()
    if path.stem in SMALLER:
        written, smaller = SMALLER[path.stem]
        assert text.count(written) == 1
        text = text.replace(written, smaller)
    names: dict[str, Any] = {"__name__": "example", "__file__": str(path)}
    exec(compile(text, path, "exec"), names)
    return names


@pytest.mark.slow_cases(
    "lightning_trainer", "huggingface_trainer", "gan_own_loop", "distillation", "stable_baselines3_agent"
)
@pytest.mark.filterwarnings("ignore:.*does not have many workers")
@pytest.mark.filterwarnings("ignore:.*LeafSpec.* is deprecated")
@pytest.mark.filterwarnings("ignore:.*the error barrier between particles")  # of the dense cycle
@pytest.mark.parametrize("name", TRAINERS)
def test_an_example_runs_and_ends_with_its_zeros_kept(name, tmp_path, capsys):
    with torch.random.fork_rng():
        executed(EXAMPLES / f"{name}.py")["main"](*([] if name == "plain_pytorch" else [tmp_path]))
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
        executed(path)
    assert "SparseModel(" in capsys.readouterr().out
