"""Small synthetic run directories."""

import json
from pathlib import Path
from typing import Any


def metrics(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "nll": 1 - accuracy, "ece": 0.1 - 0.1 * accuracy}


def cycle(
    number: int, density: float, accuracy: float, particles: tuple[float, ...] = (), **more: Any
) -> dict[str, Any]:
    own = particles or (accuracy,)
    return {
        "cycle": number,
        "sparsity": 1 - density,
        "density": {"prunable": density, "all": 0.9 * density + 0.1},
        "nnz": round(1000 * density),
        "prunable": 1000,
        "train": metrics(accuracy),
        "validation": None,
        "test": metrics(accuracy),
        "particles": [
            {"train": metrics(a), "validation": None, "test": metrics(a), "steps": 100, "seconds": 1.0, "loss": 0.3}
            for a in own
        ],
        "barrier": {"pair": 0.004, "mean": -0.002} if len(own) > 1 else None,
        "steps": 100 * len(own),
        "samples": 1000 * len(own),
        "flops": None,
        "seconds": 2.0,
        "sequential_steps": 100,
        "warnings": [],
        **more,
    }


def lines_of(cycles: list[dict[str, Any]]) -> str:
    """The lines of metrics.jsonl. A `total` that is not given is that of an iterative method: all costs so far."""
    costs = ("steps", "samples", "flops", "seconds", "sequential_steps")
    lines: list[str] = []
    for number, cycle in enumerate(cycles, 1):
        if "total" not in cycle:
            spent = {name: [one[name] for one in cycles[:number]] for name in costs}
            total = {name: None if None in each else sum(each) for name, each in spent.items()}
            cycle = {**cycle, "total": total}
        lines.append(json.dumps(cycle) + "\n")
    return "".join(lines)


def write_run(path: Path, cycles: list[dict[str, Any]], **config: Any) -> Path:
    path.mkdir(parents=True)
    settings = {"task": "digits", "model": "mlp", "method": "imp", "seed": 0, "training": {"lr": 0.1}, **config}
    (path / "config.json").write_text(json.dumps(settings))
    (path / "metrics.jsonl").write_text(lines_of(cycles))
    return path
