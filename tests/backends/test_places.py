"""A cycle whose particles were partly trained before: the others keep their share of the machine and their place."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from swamp.backends import Autotune, Progress, Sequential, Threads, Ticket, TrainRequest, Vmapped
from swamp.backends import autotune as autotune_module
from swamp.backends import threads as threads_module
from swamp.backends.autotune import Choice
from swamp.errors import Interrupted
from swamp.masks import Mask
from swamp.training import Seed, Training

from .test_equality import wide_stack

TRAINING = Training(epochs=4, batch_size=6, swa_fraction=0.5, lr=0.1)


class Places(Progress):
    """Progress of a cycle of so many particles."""

    def __init__(self, places: int) -> None:
        self.places = places


def seeds(*indices: int) -> list[tuple[int, Seed]]:
    return [(index, Seed(index).at("particle")) for index in indices]


def two_thirds_of(model) -> Mask:
    return Mask({n: torch.arange(p.numel()).view(p.shape) % 3 != 0 for n, p in Mask.ones(model).items()})


def same_bits(one, other) -> bool:
    return all(torch.equal(one.weights[name], value) for name, value in other.weights.items())


def test_a_stack_saved_at_different_steps_resumes_to_the_same_bits():
    backend, parts = wide_stack()

    class Saved(Places):
        kept, on = {}, False

        def on_step(self, index, step, total, snapshot):
            if step == (3, 5, 5)[index] and not self.on:
                self.kept[index] = snapshot()

        def load_snapshot(self, index):
            return self.kept[index] if self.on else None

    progress = Saved(3)
    whole = backend.train(TrainRequest(*parts, seeds(0, 1, 2), progress=progress))
    progress.on = True
    found = backend.train(TrainRequest(*parts, seeds(0, 1, 2), progress=progress))
    assert all(same_bits(one, other) for one, other in zip(found, whole, strict=True))


@pytest.mark.parametrize("left", [(0, 2), (1,), (2,)])
def test_the_missing_particles_of_a_stack_are_trained_in_one_as_large(left):
    # A particle that diverged is trained again later, and so is one of a process that was killed.
    backend, parts = wide_stack()
    whole = backend.train(TrainRequest(*parts, seeds(0, 1, 2), progress=Places(3)))
    found = backend.train(TrainRequest(*parts, seeds(*left), progress=Places(3)))
    assert [one.index for one in found] == [*left]
    assert all(same_bits(one, whole[one.index]) for one in found)


@pytest.mark.usefixtures("uncompiled_graph")
def test_a_particle_trained_again_alone_compiles_nothing(mlp, image_task, ticket_of, monkeypatch, recwarn):
    backend, parts = Vmapped(mlp, image_task), (ticket_of(mlp), two_thirds_of(mlp), TRAINING)
    backend.train(TrainRequest(*parts, seeds(0, 1, 2), progress=Places(3)))
    monkeypatch.setattr(torch._inductor, "compile", None)
    (found,) = backend.train(TrainRequest(*parts, seeds(1), progress=Places(3)))
    (expected,) = Sequential(mlp, image_task).train(TrainRequest(*parts, seeds(1)))
    assert_close(dict(found.weights), dict(expected.weights), rtol=0, atol=1e-10)
    assert not recwarn


def test_nothing_is_compiled_for_particles_that_took_their_last_step(mlp, image_task, ticket_of, monkeypatch, recwarn):
    class Kept(Places):
        def __init__(self) -> None:
            super().__init__(3)
            self.kept = {}

        def on_last_step(self, index, snapshot):
            self.kept[index] = snapshot()

        def load_snapshot(self, index):
            return self.kept.get(index)

    parts, progress = (ticket_of(mlp), two_thirds_of(mlp), TRAINING), Kept()
    whole = Vmapped(mlp, image_task, compiled=False).train(TrainRequest(*parts, seeds(0, 1, 2), progress=progress))
    monkeypatch.setattr(torch._inductor, "compile", None)
    (found,) = Vmapped(mlp, image_task).train(TrainRequest(*parts, seeds(2), progress=progress))
    assert same_bits(found, whole[2])
    assert not recwarn


def test_all_particles_are_saved_at_the_last_step_before_the_first_is_finished(mlp, image_task):
    reports = []

    class Reports(Progress):
        def on_last_step(self, index, snapshot):
            reports.append(("last step", index, snapshot().step))

        def on_finished(self, particle):
            reports.append(("finished", particle.index, particle.steps))

    backend = Vmapped(mlp, image_task, compiled=False)
    backend.train(TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING, seeds(0, 1), progress=Reports()))
    assert reports == [("last step", 0, 12), ("last step", 1, 12), ("finished", 0, 12), ("finished", 1, 12)]


def test_every_particle_of_a_stack_is_asked_to_stop_so_that_each_saves_itself(mlp, image_task):
    asked = []

    class Stops(Progress):
        def on_step(self, index, step, total, snapshot):
            if step == 4:
                asked.append(index)
                raise Interrupted("stopped.")

    backend = Vmapped(mlp, image_task, compiled=False)
    with pytest.raises(Interrupted):
        backend.train(
            TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING, seeds(0, 1), progress=Stops())
        )
    assert asked == [0, 1]


@pytest.mark.parametrize("build", [Threads, partial(Autotune, choice=Choice("threads", "given"))])
@pytest.mark.parametrize(("places", "left", "each"), [(0, 3, 2), (3, 1, 2), (3, 2, 2), (2, 1, 4), (9, 1, 1), (0, 1, 8)])
def test_the_missing_particles_have_the_threads_that_they_would_have_had(
    places, left, each, build, mlp, image_task, monkeypatch
):
    # Another number of torch's threads rounds differently.
    monkeypatch.setattr(threads_module, "cores", lambda: 8)
    monkeypatch.setattr(autotune_module, "cores", lambda: 8)
    seen = set()

    class Sees(Places):
        def on_step(self, index, step, total, snapshot):
            seen.add(torch.get_num_threads())

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(8)
        parts = Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING
        build(mlp, image_task).train(TrainRequest(*parts, seeds(*range(left)), progress=Sees(places)))
        assert torch.get_num_threads() == 8
    finally:
        torch.set_num_threads(before)
    assert seen == {each}
