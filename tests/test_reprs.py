"""What a notebook or a debugger shows is short, whatever the size of the model."""

from dataclasses import fields
from html.parser import HTMLParser

import pytest
import torch
from torch import nn

import swamp
from swamp.algorithms.sparse_model import PlanOptions


@pytest.fixture(scope="module")
def shown() -> dict[str, object]:
    torch.manual_seed(0)
    inputs = torch.randn(48, 6)
    task = swamp.Task.of(train=(inputs, inputs[:, 0].gt(0).long()), test=(inputs, inputs[:, 0].gt(0).long()))
    model = nn.Sequential(nn.Linear(6, 40), *(nn.Linear(40, 40) for _ in range(30)), nn.Linear(40, 2))
    plan = swamp.Plan(method="imp", sparsity=0.5, cycles=1, seed=3)
    training = swamp.Training(epochs=2, batch_size=16)
    sparse = swamp.prune(model, task, sparsity=0.5, method="imp", cycles=1, training=training)
    values = [sparse, sparse.cycles[0], sparse.mask, task, plan, training]
    return {type(value).__name__: value for value in values}


NAMES = ["SparseModel", "Cycle", "Mask", "Task", "Plan", "Training"]


@pytest.mark.parametrize("name", NAMES)
def test_a_repr_has_at_most_five_short_lines(name, shown):
    text = repr(shown[name])
    assert text.startswith(name)
    assert len(text.splitlines()) <= 5
    assert all(len(line) < 200 for line in text.splitlines())


@pytest.mark.parametrize("name", NAMES)
def test_the_html_of_a_notebook_is_whole(name, shown):
    class Tags(HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []

        def handle_starttag(self, tag, attrs):
            self.open.append(tag)

        def handle_endtag(self, tag):
            assert self.open.pop() == tag

    text, parser = shown[name]._repr_html_(), Tags()
    parser.feed(text)
    assert not parser.open
    assert name in text or "Sequential" in text
    assert len(text) < 20_000


def test_a_plan_shows_the_fields_that_differ_from_their_defaults():
    assert repr(swamp.Plan()) == "Plan()"
    assert repr(swamp.Plan(method="imp", seed=3)) == "Plan(method='imp', seed=3)"
    assert repr(swamp.Training(lr=0.2)) == "Training(lr=0.2)"


def test_the_options_of_prune_are_the_fields_of_a_plan():
    own = {"method", "sparsity", "particles", "transfer"}
    assert {*PlanOptions.__annotations__} == {one.name for one in fields(swamp.Plan)} - own
