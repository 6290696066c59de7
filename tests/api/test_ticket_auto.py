"""prune(ticket="auto"): the search of `swamp ticket` before the run."""

from dataclasses import replace

import pytest
import torch

import swamp
from swamp.analysis import rewind_search
from swamp.api.ticket_search import TRIALS
from swamp.training import Training

HOW = Training(epochs=4, batch_size=16, lr=0.05)
PLAN = {
    "sparsity": 0.75,
    "cycles": 2,
    "particles": 2,
    "backend": "sequential",
    "training": HOW,
    "barrier_threshold": 1.0,
}


@pytest.fixture
def barriers(monkeypatch):
    """Barriers of tickets in place of measured ones; returns the steps that were asked for."""
    asked: list[int] = []

    def barrier_at(self, steps: int, repeat: int = 0) -> float:
        asked.append(steps)
        return 0.0 if steps >= 7 else 0.5

    monkeypatch.setattr(rewind_search.InstabilityAnalysis, "barrier_at", barrier_at)
    return asked


def same(one: swamp.SparseModel, other: swamp.SparseModel) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))


def test_the_run_is_that_with_the_ticket_that_was_found(mlp, task, barriers):
    found = swamp.prune(mlp, task, ticket="auto", **PLAN)
    per_epoch = task.train.steps(16)
    assert same(found, swamp.prune(mlp, task, ticket_epochs=7 / per_epoch, **PLAN))
    assert not same(found, swamp.prune(mlp, task, **PLAN))
    assert {6, 7} <= set(barriers)


def test_the_sparsity_is_that_of_the_first_pruned_cycle(mlp, task, monkeypatch):
    seen: list[float] = []
    monkeypatch.setattr(
        rewind_search.InstabilityAnalysis, "barrier_at", lambda self, steps, repeat=0: seen.append(self.sparsity) or 0.0
    )
    swamp.prune(mlp, task, ticket="auto", **PLAN)
    assert seen
    assert set(seen) == {0.5}


def test_barriers_are_measured(mlp, task):
    # Copies that hardly move are connected from the first step on.
    slow = {**PLAN, "sparsity": 0.6, "training": replace(HOW, lr=1e-5)}
    found = swamp.prune(mlp, task, ticket="auto", **slow)
    assert same(found, swamp.prune(mlp, task, ticket_epochs=0, **slow))


def test_with_out_no_trial_is_repeated(mlp, task, barriers, tmp_path):
    first = swamp.prune(mlp, task, ticket="auto", out=tmp_path / "run", **PLAN)
    trials = len(barriers)
    assert (tmp_path / "run" / TRIALS / rewind_search.TRIALS_FILE).exists()
    assert same(first, swamp.prune(mlp, task, ticket="auto", out=tmp_path / "run", **PLAN))
    assert len(barriers) == trials
    with pytest.raises(swamp.SwampError, match="trials of another search"):
        swamp.prune(mlp, task, ticket="auto", out=tmp_path / "run", seed=1, **PLAN)


def test_a_stopped_search_goes_on(mlp, task, monkeypatch, tmp_path):
    asked: list[int] = []

    def barrier_at(self, steps: int, repeat: int = 0) -> float:
        if len(asked) == 2:
            asked.append(-1)
            raise KeyboardInterrupt
        asked.append(steps)
        return 0.0 if steps >= 7 else 0.5

    monkeypatch.setattr(rewind_search.InstabilityAnalysis, "barrier_at", barrier_at)
    with pytest.raises(KeyboardInterrupt):
        swamp.prune(mlp, task, ticket="auto", out=tmp_path / "run", **PLAN)
    swamp.prune(mlp, task, ticket="auto", out=tmp_path / "run", **PLAN)
    assert asked.count(asked[0]) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ticket_epochs": 2}, 'ticket="auto" finds ticket_epochs. Leave one of them out.'),
        ({"method": "set-swamp"}, "set-swamp has no ticket: it starts from the initial weights"),
        ({"ticket": "late"}, "unknown ticket 'late'. Did you mean auto?"),
        ({"drop_fraction": 0.5}, "drop_fraction"),
        ({"budget": 6.0}, 'a budget is spent in advance, and ticket="auto" costs what its search needs. Give one'),
    ],
)
def test_what_cannot_be_is_refused_before_the_search(options, message, mlp, task, barriers):
    with pytest.raises(swamp.SwampError, match=message):
        swamp.prune(mlp, task, **{**PLAN, "ticket": "auto", **options})
    assert not barriers


def test_no_stable_ticket_is_told_with_what_to_try(mlp, task, monkeypatch):
    monkeypatch.setattr(rewind_search.InstabilityAnalysis, "barrier_at", lambda self, steps, repeat=0: 0.5)
    with pytest.raises(swamp.SwampError, match=r"no ticket up to step 16 .*Try a lower .* one of 32 is 3.1 points"):
        swamp.prune(mlp, task, ticket="auto", **PLAN)
