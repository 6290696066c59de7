"""Particles of several tickets and masks, trained at once."""

import copy
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from swamp.backends import Auto, Choice, Group, Sequential, Silent, Stacked, Threads, Ticket, train_groups
from swamp.backends import auto as auto_module
from swamp.backends import threads as threads_module
from swamp.errors import Diverged, Interrupted
from swamp.masks import Mask
from swamp.training import Seed, Task, TensorData, Training, isolated

from .test_equality import COMPILER, wide_stack

TRAINING = Training(epochs=4, batch_size=6, swa_fraction=0.5, lr=0.1)
BACKENDS = {
    "sequential": Sequential,
    "threads": Threads,
    "stacked": partial(Stacked, compiled=False),
    "auto": Auto,
    "chosen": partial(Auto, chosen=Choice("threads", "given")),
}


class Hears(Silent):
    """Remembers who took which step, and who was finished."""

    def __init__(self) -> None:
        self.steps, self.done = [], []

    def stepped(self, index, step, total, snapshot):
        self.steps.append((index, step))

    def finished(self, particle):
        self.done.append(particle.index)


def seeds(*indices: int) -> list[tuple[int, Seed]]:
    return [(index, Seed(index).at("particle")) for index in indices]


def mask_of(model: nn.Module, every: int) -> Mask:
    return Mask({n: torch.arange(p.numel()).view(p.shape) % every != 0 for n, p in Mask.ones(model).items()})


@pytest.fixture
def groups(model, ticket_of) -> list[Group]:
    """Two runs at different points, one that lacks nothing, and one whose particle has the number of another's."""
    return [
        Group(ticket_of(model, 5), mask_of(model, 3), seeds(0, 2), Hears()),
        Group(ticket_of(model, 6), mask_of(model, 3), [], Hears()),
        Group(ticket_of(model, 7), mask_of(model, 2), seeds(0), Hears()),
    ]


def assert_each_is_as_if_trained_alone(found, groups, model, task, training=TRAINING):
    alone = Sequential(model, task)
    assert [len(particles) for particles in found] == [len(group.seeds) for group in groups]
    for particles, group in zip(found, groups, strict=True):
        expected = alone.train(group.ticket, group.mask, training, group.seeds)
        for one, other in zip(particles, expected, strict=True):
            assert (one.index, one.ticket, one.mask) == (other.index, other.ticket, other.mask)
            assert_close(dict(one.weights), dict(other.weights), rtol=0, atol=1e-10)


@pytest.mark.parametrize("build", BACKENDS.values(), ids=BACKENDS)
def test_each_is_what_it_is_when_trained_alone_and_its_own_progress_hears_of_it(build, model, image_task, groups):
    found = train_groups(build(model, image_task), groups, TRAINING)
    assert_each_is_as_if_trained_alone(found, groups, model, image_task)
    for group in groups:
        indices = [index for index, _ in group.seeds]
        assert sorted(group.progress.done) == indices
        assert sorted(group.progress.steps) == sorted((index, step) for index in indices for step in range(1, 13))


@pytest.mark.parametrize("options", [{"sam": 0.1}, {"sam": 0.1, "sharpness": "s2-sam"}, {"clip": 0.5}, {"ema": 0.9}])
def test_masks_of_their_own_hold_with_every_option_of_a_stack(options, model, image_task, groups):
    training = replace(TRAINING, **options) if "ema" not in options else replace(TRAINING, swa=False, **options)
    found = Stacked(model, image_task, compiled=False).train_groups(groups, training)
    assert_each_is_as_if_trained_alone(found, groups, model, image_task, training)


@pytest.mark.slow
@COMPILER
def test_a_compiled_stack_of_several_masks_serves_every_cycle(mlp, image_task, ticket_of, monkeypatch):
    backend = Stacked(mlp, image_task)
    for cycle, every in enumerate((2, 3)):
        if cycle:
            monkeypatch.setattr(torch._inductor, "compile", None)
        groups = [Group(ticket_of(mlp, n), mask_of(mlp, every + n), seeds(0)) for n in range(2)]
        found = backend.train_groups(groups, TRAINING)
        assert_each_is_as_if_trained_alone(found, groups, mlp, image_task)
    assert backend.compiled


def test_a_stack_that_does_not_fit_is_halved_wherever_a_group_ends(mlp, image_task, ticket_of, monkeypatch):
    groups = [Group(ticket_of(mlp, n), mask_of(mlp, 2 + n), seeds(0, 1, 2)) for n in range(2)]
    backend, whole = Stacked(mlp, image_task, compiled=False), Stacked._stack

    def small(self, step, rows, places, own_masks):
        if len(places) > 4:
            raise torch.OutOfMemoryError("too large")
        return whole(self, step, rows, places, own_masks)

    monkeypatch.setattr(Stacked, "_stack", small)
    with pytest.warns(UserWarning, match="6 particles do not fit in memory at once; going on with 3"):
        found = backend.train_groups(groups, TRAINING)
    assert_each_is_as_if_trained_alone(found, groups, mlp, image_task)


@pytest.mark.parametrize("build", [Threads, partial(Stacked, compiled=False)])
def test_one_that_breaks_is_told_to_its_own_progress_and_harms_no_other(build, mlp, image_task, ticket_of, monkeypatch):
    class Breaks(Silent):
        told = ()

        def broke(self, index, error):
            self.told = (*self.told, (index, str(error)))

    bad = ticket_of(mlp, 6)
    bad = Ticket({n: w * torch.nan for n, w in bad.weights.items()}, 0)
    given = [(ticket_of(mlp, 5), Breaks()), (bad, Breaks()), (ticket_of(mlp, 7), Breaks())]
    groups = [Group(ticket, mask_of(mlp, 3), seeds(0), progress) for ticket, progress in given]
    monkeypatch.setattr(threads_module, "cores", lambda: 2)
    found = train_groups(build(mlp, image_task), groups, TRAINING)
    assert [len(particles) for particles in found] == [1, 0, 1]
    assert [len(progress.told) for _, progress in given] == [0, 1, 0]
    (index, text) = given[1][1].told[0]
    assert index == 0
    assert text.startswith("particle 0: ")
    kept = [groups[0], groups[2]]
    assert_each_is_as_if_trained_alone([found[0], found[2]], kept, mlp, image_task)


def test_nobody_who_lets_the_others_go_on_ends_it(mlp, image_task, ticket_of):
    bad = Ticket({n: w * torch.nan for n, w in ticket_of(mlp, 6).weights.items()}, 0)
    groups = [Group(ticket, mask_of(mlp, 3), seeds(0)) for ticket in (ticket_of(mlp, 5), bad)]
    with pytest.raises(Diverged, match="particle 0"):
        Stacked(mlp, image_task, compiled=False).train_groups(groups, TRAINING)


class Wide:
    """Two runs, large enough that a stack of one rounds otherwise than one of two."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        data = TensorData(torch.randn(192, 64, generator=generator), torch.randint(0, 10, (192,), generator=generator))
        with isolated(Seed(0).at("init")):
            self.model = nn.Sequential(nn.Linear(64, 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 10))
        self.task, self.training = Task(data, data), replace(TRAINING, batch_size=48)
        tickets = [Ticket(copy.deepcopy(self.model).state_dict(), steps) for steps in (0, 1)]
        self.given = [(t, mask_of(self.model, 2 + n), seeds(0)) for n, t in enumerate(tickets)]

    def train(self, progress) -> list:
        groups = [Group(*one, told, of=1) for one, told in zip(self.given, progress, strict=True)]
        return Stacked(self.model, self.task, compiled=False).train_groups(groups, self.training)


def test_a_stack_of_runs_that_were_saved_at_different_steps_goes_on_to_the_same_bits():
    wide = Wide()

    class Saved(Silent):
        def __init__(self, at: int) -> None:
            self.at, self.kept, self.on = at, None, False

        def stepped(self, index, step, total, snapshot):
            if step == self.at and not self.on:
                self.kept = snapshot()

        def unfinished(self, index):
            return self.kept if self.on else None

    progress = [Saved(3), Saved(5)]
    whole = wide.train(progress)
    for one in progress:
        one.on = True
    found = wide.train(progress)
    for (one,), (other,) in zip(found, whole, strict=True):
        assert all(torch.equal(one.weights[name], value) for name, value in other.weights.items())


def same_bits(one, other) -> bool:
    return all(torch.equal(one.weights[name], value) for name, value in other.weights.items())


@pytest.mark.parametrize("left", [(0, 2), (1,), (2,)])
def test_what_is_left_of_a_stack_goes_on_in_one_as_large(left):
    # One that broke is trained again later, and a process that was killed meanwhile knows of it.
    backend, (ticket, mask, training) = wide_stack()
    group = Group(ticket, mask, seeds(0, 1, 2), of=3)
    (whole,) = backend.train_groups([group], training)
    (found,) = backend.train_groups([replace(group, seeds=seeds(*left))], training)
    assert [one.index for one in found] == [*left]
    assert all(same_bits(one, whole[one.index]) for one in found)


@pytest.mark.parametrize("lacks", [0, 1])
def test_a_run_whose_company_lacks_nothing_goes_on_to_the_same_bits(lacks):
    wide = Wide()
    whole = wide.train([Silent(), Silent()])
    lacking = wide.given[lacks]
    wide.given[lacks] = (*lacking[:2], [])
    found = wide.train([Silent(), Silent()])
    assert found[lacks] == []
    assert same_bits(found[1 - lacks][0], whole[1 - lacks][0])


@pytest.mark.slow
@COMPILER
def test_one_that_is_trained_again_alone_compiles_nothing_anew(mlp, image_task, ticket_of, monkeypatch, recwarn):
    backend, group = Stacked(mlp, image_task), Group(ticket_of(mlp), mask_of(mlp, 3), seeds(0, 1, 2), of=3)
    backend.train_groups([group], TRAINING)
    monkeypatch.setattr(torch._inductor, "compile", None)
    alone = [replace(group, seeds=seeds(1))]
    assert_each_is_as_if_trained_alone(backend.train_groups(alone, TRAINING), alone, mlp, image_task)
    assert not recwarn


def test_nothing_is_compiled_for_what_took_its_last_step_before(mlp, image_task, ticket_of, monkeypatch, recwarn):
    class Kept(Silent):
        def __init__(self) -> None:
            self.kept = {}

        def ready(self, index, snapshot):
            self.kept[index] = snapshot()

        def unfinished(self, index):
            return self.kept.get(index)

    group = Group(ticket_of(mlp), mask_of(mlp, 3), seeds(0, 1, 2), Kept(), of=3)
    (whole,) = Stacked(mlp, image_task, compiled=False).train_groups([group], TRAINING)
    monkeypatch.setattr(torch._inductor, "compile", None)
    (found,) = Stacked(mlp, image_task).train_groups([replace(group, seeds=seeds(2))], TRAINING)
    assert same_bits(found[0], whole[2])
    assert not recwarn


def test_all_are_kept_at_the_last_step_before_the_first_is_finished():
    wide, words = Wide(), []

    class Says(Silent):
        def __init__(self, name: str) -> None:
            self.name = name

        def ready(self, index, snapshot):
            words.append(("ready", self.name, snapshot().step))

        def finished(self, particle):
            words.append(("finished", self.name, particle.steps))

    wide.train([Says("a"), Says("b")])
    assert words == [("ready", "a", 16), ("ready", "b", 16), ("finished", "a", 16), ("finished", "b", 16)]


def test_asked_to_stop_every_run_is_asked_so_that_each_saves_itself():
    wide = Wide()

    class Stops(Silent):
        asked = 0

        def stepped(self, index, step, total, snapshot):
            if step == 4:
                self.asked += 1
                raise Interrupted("stopped.")

    progress = [Stops(), Stops()]
    with pytest.raises(Interrupted):
        wide.train(progress)
    assert [one.asked for one in progress] == [1, 1]


@pytest.mark.parametrize("build", [Threads, partial(Auto, chosen=Choice("threads", "given"))])
@pytest.mark.parametrize(("of", "left", "each"), [(0, 3, 2), (3, 1, 2), (3, 2, 2), (2, 1, 4), (9, 1, 1), (0, 1, 8)])
def test_what_an_earlier_session_left_has_the_threads_that_it_had(of, left, each, build, mlp, image_task, monkeypatch):
    # Another number of torch's threads an operation rounds differently.
    monkeypatch.setattr(threads_module, "cores", lambda: 8)
    monkeypatch.setattr(auto_module, "cores", lambda: 8)
    seen = set()

    class Sees(Silent):
        def stepped(self, index, step, total, snapshot):
            seen.add(torch.get_num_threads())

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(8)
        group = Group(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), seeds(*range(left)), Sees(), of)
        train_groups(build(mlp, image_task), [group], TRAINING)
        assert torch.get_num_threads() == 8
    finally:
        torch.set_num_threads(before)
    assert seen == {each}
