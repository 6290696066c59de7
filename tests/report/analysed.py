"""Lines of analysis.jsonl as the analyses write them, for a run of some cycles with three particles."""

import json
import math
from pathlib import Path
from typing import Any

from swamp.runs.directory import PROVENANCE, add_checksum

NAMES = ["particle-0", "particle-1", "particle-2"]
SHARES = [index / 10 for index in range(11)]
LAYERS = ("hidden1.weight", "hidden2.weight", "output.weight")


def records(densities: list[float]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for cycle, density in enumerate(densities):
        at = {"cycle": cycle, "sparsity": 1 - density}
        key = f"cycle-{cycle:02d}"
        found += [{"key": f"{name}/{key}{more}", **at, **values} for name, more, values in _of(cycle, density)]
    sizes = {"radius": 0.4, "mean_distance": 0.3, "dimension": None, "sparsity": 0.9}
    found.append({"key": "hull/all", "cycles": len(densities), "gain": sizes, "loss_gain": sizes})
    return [{"settings": {"examples": 64, "points": 11, "seed": 0}, **record} for record in found]


def write_analysis(path: Path, lines: list[dict[str, Any]]) -> None:
    plain = [{key: value for key, value in line.items() if key != PROVENANCE} for line in lines]
    signed = [add_checksum(line, {"path": "analysis.jsonl"}) for line in plain]
    (path / "analysis.jsonl").write_text("".join(json.dumps(line) + "\n" for line in signed))


def _of(cycle: int, density: float) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        ("barriers", "/particles", _way(["particle-0", "particle-1"], 0.01 * cycle)),
        ("barriers", "/next", _way(["mean", "next"], 0.02 * cycle)),
        ("curvature", "/mean", _curvature("mean", 8 / density**0.5)),
        ("curvature", "/particle-0", _curvature("particle-0", 14 / density**0.5)),
        ("hull", "", _hull()),
        ("averaging", "", _averaging(cycle)),
        ("noise", "/none", _noise("none", 0.0)),
        ("noise", "/order", _noise("order", 0.6)),
        ("noise", "/dropout", {"factor": "dropout", "skipped": "its network draws no random numbers"}),
        ("masks", "", _masks(density)),
        ("predictions", "", _predictions(cycle)),
        ("landscape", "", _plane(_points())),
        ("landscape", "/random", _plane({"mean": [0, 0]})),
        ("trajectories", "", _paths()),
    ]


def _way(between: list[str], height: float) -> dict[str, Any]:
    error = [0.2 + height * math.sin(math.pi * share) for share in SHARES]
    barrier = {"error": height, "loss": 2 * height, "chord_error": height, "chord_loss": 2 * height}
    loss: list[float | None] = [2 * value for value in error]
    loss[3] = None
    return {"between": between, "coefficients": SHARES, "loss": loss, "error": error, "barrier": barrier, "pairs": None}


def _curvature(of: str, trace: float) -> dict[str, Any]:
    at = [-1 + 0.2 * index for index in range(60)]
    return {
        "of": of,
        "trace": {"mean": trace, "error": 0.1 * trace, "probes": 8},
        "active": {"mean": 0.8 * trace, "error": 0.1 * trace},
        "layers": {name: {"mean": trace / 3, "error": 0.1} for name in LAYERS},
        "top": [{"value": trace / 4, "residual": 0.01}],
        "density": {"at": at, "value": [math.exp(-(x**2)) + 1e-4 * (x > 3) for x in at]},
    }


def _averaging(cycle: int) -> dict[str, Any]:
    law, spread = [0.6, 0.55, 0.525, 0.5125], [0.02, 0.01, 0.005, 0.0]
    values = {"mean": [0.6, 0.55, 0.53 - 0.001 * cycle, 0.52], "spread": spread, "predicted": law}
    error = {"mean": [0.2, 0.19, None, 0.18], "spread": spread, "predicted": [0.2, 0.19, 0.185, 0.1825]}
    return {"particles": 8, "sizes": [1, 2, 4, 8], "loss": values, "error": error}


def _hull() -> dict[str, Any]:
    weights = [[a / 10, b / 10, (10 - a - b) / 10] for a in range(11) for b in range(11 - a)]
    error = [0.2 - 0.3 * a * b - 0.2 * b * c - 0.25 * a * c for a, b, c in weights]
    square = [[0.0, 1.0, 1.1], [1.0, 0.0, 0.9], [1.1, 0.9, 0.0]]
    return {
        "particles": 3,
        "distances": square,
        "angles": square,
        "radius": 0.6,
        "spectrum": [0.6, 0.4],
        "dimension": 1.9,
        "to_ticket": {"particles": [2.0, 2.1, 2.2], "mean": 1.9},
        "extreme_points": [{"loss": 0.5, "error": 0.2}, {"loss": 0.5, "error": 0.21}, {"loss": 0.5, "error": 0.19}],
        "mean": {"loss": 0.4, "error": 0.13},
        "samples": [{"coefficients": w, "loss": 2 * e, "error": e} for w, e in zip(weights, error, strict=True)],
        "edges": [_edge(0, 1), _edge(0, 2), _edge(1, 2)],
        "triangle": {"coefficients": weights, "loss": error, "error": [None, *error[1:]]},
        "soups": {
            "mean": {"loss": 0.4, "error": 0.13},
            "best": {"particle": 2, "loss": 0.5, "error": 0.19},
            "greedy": {"taken": [0, 2], "loss": 0.4, "error": 0.128},
            "learned": {"coefficients": [None, None, None], "loss": None, "error": None},
        },
        "gain": 0.07,
    }


def _noise(source: str, distance: float) -> dict[str, Any]:
    return {
        "factor": source,
        "particles": 2,
        "identical": not distance,
        "mean_distance": distance,
        "radius": distance / 2,
        "dimension": 1.0 if distance else None,
        "barrier": {"error": 0.01 * distance, "loss": 0.02 * distance},
        "mean": {"loss": 0.4, "error": 0.13},
        "gain": 0.02 * distance,
    }


def _edge(one: int, other: int) -> dict[str, Any]:
    error = [0.2 - 0.2 * share * (1 - share) for share in SHARES]
    return {"between": [one, other], "coefficients": SHARES, "loss": error, "error": error}


def _masks(density: float) -> dict[str, Any]:
    own = (density**1.3, density, density**0.5)
    layers = {n: {"density": d, "nnz": round(1000 * d), "size": 1000} for n, d in zip(LAYERS, own, strict=True)}
    dead = {name: {"inputs": 3, "outputs": 0} for name in LAYERS}
    return {
        "layers": layers,
        "dead": dead,
        "kept_of_before": 0.8,
        "signs": {"ticket": 0.9, "before": 0.97},
        "magnitude_rank": 0.5,
    }


def _measures(accuracy: float) -> dict[str, float]:
    return {"accuracy": accuracy, "nll": 1 - accuracy, "ece": 0.02}


def _predictions(cycle: int) -> dict[str, Any]:
    steps = [
        {"severity": s, "mean": _measures(0.8 - s / 2), "particle": _measures(0.75 - s / 2), "ensemble": 0.82 - s / 2}
        for s in (0.1, 0.3, 0.5)
    ]
    return {
        "disagreement": [[0.0, 0.1, 0.12], [0.1, 0.0, None], [0.12, None, 0.0]],
        "mean": _measures(0.85 - 0.01 * cycle),
        "particles": [_measures(0.82 - 0.01 * cycle + 0.01 * index) for index in range(3)],
        "ensemble": _measures(0.86 - 0.01 * cycle),
        "corruptions": {"noise": steps, "blur": steps},
    }


def _points() -> dict[str, list[float]]:
    particles = dict(zip(NAMES, [[0.6, 0.2], [-0.5, 0.6], [0.0, -0.4]], strict=True))
    return {**particles, "mean": [0.0, 0.13], "ticket": [-0.9, -0.8]}


def _plane(points: dict[str, list[float]]) -> dict[str, Any]:
    side = [-1.2 + 0.12 * index for index in range(21)]
    error = [[min(0.9, 0.1 + 0.3 * (x**2 + 1.5 * y**2)) for x in side] for y in side]
    return {"u": side, "v": side, "loss": error, "error": error, "points": points}


def _paths() -> dict[str, Any]:
    steps = list(range(0, 101, 10))
    particles = [
        {
            "steps": steps,
            "x": [math.cos(2 * index) * step / 100 for step in steps],
            "y": [math.sin(2 * index) * step / 100 + step / 300 for step in steps],
            "from_ticket": [step / 90 for step in steps],
            "between": [step / 80 for step in steps],
        }
        for index in range(3)
    ]
    barriers = {"steps": [0, 1, 2], "error": [0.0, 0.03, 0.01]}
    return {"particles": particles, "explained": [0.6, 0.2], "barriers": barriers, "onset": 2}
