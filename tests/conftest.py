import math
import os
from collections import defaultdict
from itertools import combinations

import hypothesis
import pytest
import torch
from torch import nn

from swamp.training import Seed, Task, TensorData
from swamp.training.rng import isolated

from . import poison

# One thread: other numbers of threads round differently, and tests run beside each other: where the processes that
# they start have more threads than cores, these wait for each other, and a minute's work takes four.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples each time: a tree passes or does not. New ones are looked for with --hypothesis-profile=search.
# No limit on an example's time: machines are busy, and a slow one is not a wrong one.
hypothesis.settings.register_profile("swamp", deadline=None, derandomize=True)
hypothesis.settings.register_profile("search", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("swamp")


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marker
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Apply the markers `pairwise`, `slow_cases` and `fast_cases` (see pyproject.toml) to the cases of each test."""
    tests: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        tests[item.nodeid.partition("[")[0]].append(item)
    dropped: set[pytest.Item] = set()
    for cases in tests.values():
        if cases[0].get_closest_marker("pairwise"):
            kept = _pairwise(cases)
            dropped.update(set(cases).difference(kept))
            cases[:] = kept
        if marker := cases[0].get_closest_marker("slow_cases"):
            for case in cases:
                if set(marker.args) & set(case.callspec.id.split("-")):
                    case.add_marker("slow")
        if marker := cases[0].get_closest_marker("fast_cases"):
            fast = _spread(len(cases), *marker.args)
            for index in set(range(len(cases))) - fast:
                cases[index].add_marker("slow")
    if dropped:
        config.hook.pytest_deselected(items=sorted(dropped, key=lambda item: item.nodeid))
        items[:] = [item for item in items if item not in dropped]


def _pairwise(cases: list[pytest.Item]) -> list[pytest.Item]:
    """Cases in which any two values of two parameters that meet in `cases` still meet; chosen greedily."""
    values = {case: sorted((name, id(value)) for name, value in case.callspec.params.items()) for case in cases}
    pairs = {case: set(combinations(values[case], 2)) for case in cases}
    missing, kept = set().union(*pairs.values()), set()
    while missing:
        best = max(cases, key=lambda case: len(pairs[case] & missing))
        missing -= pairs[best]
        kept.add(best)
    return [case for case in cases if case in kept]


def _spread(count: int, number: int) -> set[int]:
    """`number` of the indices below `count`, at a distance that visits every value of every parameter."""
    step = next(n for n in range(max(count // number, 1), 2 * count + 2) if math.gcd(n, count) == 1)
    return {index * step % count for index in range(number)}


def blobs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three overlapping classes in 6 dimensions."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    targets = torch.randint(0, 3, (count,), generator=generator)
    return centres[targets] + torch.randn(count, 6, generator=generator), targets


@pytest.fixture
def task() -> Task:
    return Task(TensorData(*blobs(96, 1)), TensorData(*blobs(64, 2)), TensorData(*blobs(48, 3)))


@pytest.fixture
def mlp() -> nn.Module:
    with isolated(Seed(7).at("init")):
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))


@pytest.fixture
def normed() -> nn.Module:
    with isolated(Seed(7).at("init")):
        return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 3))


@pytest.fixture
def uncompiled_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run what is traced for the compiler as it was traced: it computes the same, and nothing is compiled."""
    monkeypatch.setattr("torch._inductor.compile", lambda graph, inputs: graph)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty files in place of pictures, of which each takes a second to draw."""

    def empty(figure, files, *_, **__) -> None:
        for file in files:
            file.write_bytes(b"")

    for module in ("write", "matplotlib_renderer"):  # in this order: the first imports the real one of the second
        monkeypatch.setattr(f"swamp.report.{module}.draw", empty)


@pytest.fixture
def poisoned():
    return poison.poisoned


@pytest.fixture
def loses_its_gradient():
    return poison.loses_its_gradient
