"""One particle of several breaks: it is told of, and the others come out as if it had not."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from swamp.backends import CustomTrainer, Particle, Progress, Sequential, Threads, Ticket, TrainRequest, Vmapped
from swamp.backends.distributed import FolderProgress
from swamp.backends.particle import mean_of, require_unbroken
from swamp.errors import Diverged, SwampError
from swamp.masks import Mask, hold
from swamp.training import Seed, Task, TensorData, Training
from swamp.training.average import interpolate
from swamp.training.rng import isolated

SEEDS = [(index, Seed(0).at("cycle", 1, "particle", index)) for index in range(3)]
TRAINING = Training(epochs=4, batch_size=6, swa_fraction=0.5)


def by_hand(work) -> float:
    """A trainer of the user's own, by plain sgd."""
    data, total = work.data, 0.0
    optimizer = torch.optim.SGD(work.model.parameters(), 0.1)
    with hold(work.model, work.mask, optimizer):
        while work.step < work.last:
            epoch, within = divmod(work.step, work.per_epoch)
            inputs, targets = next(data.train.shuffled(6, work.seed, epoch, within))
            optimizer.zero_grad()
            loss = data.loss(data.forward(work.model, inputs), targets)
            loss.backward()
            optimizer.step()
            total += float(loss.detach())
            work.stepped()
    return total / work.steps


def own(model, task):
    def train(work):
        work.data = task
        return by_hand(work)

    return CustomTrainer(model, task, train)


BACKENDS = {
    "sequential": Sequential,
    "threads": Threads,
    "vmapped": partial(Vmapped, compiled=False),
    "own": own,
}


class GoOn(Progress):
    """Goes on without those that broke, and remembers them."""

    def __init__(self) -> None:
        self.broken: dict[int, Diverged] = {}
        self.steps: list[int] = []

    def on_step(self, index, step, total, snapshot):
        self.steps.append(index)

    def on_diverged(self, index, error):
        self.broken[index] = error


@pytest.fixture(params=BACKENDS)
def backend(request):
    return BACKENDS[request.param]


def train(backend, model, task, training=TRAINING, **others) -> list[Particle]:
    mask = Mask({n: torch.arange(p.numel()).view(p.shape) % 3 != 0 for n, p in Mask.ones(model).items()})
    return backend(model, task).train(TrainRequest(Ticket(model.state_dict(), 0), mask, training, SEEDS, **others))


def assert_the_others_are_untouched(broken: list[Particle], sound: list[Particle], same) -> None:
    assert [p.index for p in broken] == [0, 2]
    for particle in broken:
        assert same(particle.weights, sound[particle.index].weights)
        assert particle.losses == sound[particle.index].losses


@pytest.mark.fast_cases(27)
@pytest.mark.parametrize("options", [{}, {"clip": 0.5}, {"sam": 0.1}, {"optimizer": "adamw", "lr": 0.01}])
def test_the_others_are_those_of_a_run_without_the_fault(options, backend, model, image_task, same, poisoned):
    training = replace(TRAINING, **options)
    sound = train(backend, model, image_task, training)
    told = GoOn()
    task = poisoned(image_task, [SEEDS[1][1]])
    assert_the_others_are_untouched(train(backend, model, task, training, progress=told), sound, same)
    assert list(told.broken) == [1]
    assert "particle 1: the " in str(told.broken[1])
    assert " loss " in str(told.broken[1])
    # Told at the end of its second epoch, but for a trainer of the user's own, who says its loss at the end.
    assert told.broken[1].steps == (12 if backend is own else 6)


def test_a_gradient_that_is_not_finite_affects_its_particle_only(
    backend, mlp, image_task, same, loses_its_gradient, poisoned
):
    task = replace(image_task, forward=loses_its_gradient)
    sound, told = train(backend, mlp, task), GoOn()
    assert_the_others_are_untouched(train(backend, mlp, poisoned(task, [SEEDS[1][1]]), progress=told), sound, same)
    assert list(told.broken) == [1]
    # In the last step of all: no loss shows it any more, the weights do.
    told = GoOn()
    last = poisoned(task, [SEEDS[1][1]], epoch=3, step=2)
    assert_the_others_are_untouched(train(backend, mlp, last, progress=told), sound, same)
    assert "are not finite after step 12" in str(told.broken[1])


def test_overflow_of_running_statistics_is_a_divergence_even_with_a_finite_loss(backend, same, poisoned):
    with isolated(Seed(0)):
        model = nn.Sequential(nn.BatchNorm1d(5), nn.Linear(5, 3))
    inputs = torch.randn(18, 5, generator=torch.Generator().manual_seed(0))
    data = TensorData(inputs, torch.arange(18) % 3)
    task = Task(data, data)
    sound, told = train(backend, model, task), GoOn()
    # In float32 the square of 1e25 is infinite, and what is divided by it is 0.
    spoilt = poisoned(task, [SEEDS[1][1]], factor=1e25)
    assert_the_others_are_untouched(train(backend, model, spoilt, progress=told), sound, same)
    assert "'0.running_var' are not finite" in str(told.broken[1])


@pytest.mark.parametrize("name", ["sequential", "threads", "vmapped"])
def test_a_second_moment_that_overflows_is_seen_though_weights_and_loss_are_finite(name, poisoned):
    with isolated(Seed(0)):
        model = nn.Sequential(nn.Linear(5, 3))
    inputs = torch.randn(18, 5, generator=torch.Generator().manual_seed(0))
    task = poisoned(Task(*[TensorData(inputs, torch.arange(18) % 3)] * 2), [SEEDS[1][1]], factor=1e25)
    told = GoOn()
    training = replace(TRAINING, optimizer="adamw", lr=0.01)
    assert [p.index for p in train(BACKENDS[name], model, task, training, progress=told)] == [0, 2]
    assert "exp_avg_sq of '0.weight' is not finite" in str(told.broken[1])


def test_one_sample_of_an_average_that_is_not_finite_is_a_divergence(mlp, image_task):
    def spoil(work):
        work.data = image_task
        weight, sample = work.model[1].weight, TRAINING.samples_at
        stepped = work.stepped

        def spoilt():
            kept = weight.detach().clone()
            if work.seed == SEEDS[1][1] and sample(work.step + 1, work.per_epoch) and work.step + 1 < work.last:
                weight.data.view(-1)[1] = torch.inf
            stepped()
            weight.data.copy_(kept)

        work.stepped = spoilt
        return by_hand(work)

    told = GoOn()
    assert [p.index for p in train(lambda m, t: CustomTrainer(m, t, spoil), mlp, image_task, progress=told)] == [0, 2]
    assert "'1.weight' are not finite" in str(told.broken[1])


def test_without_a_policy_the_first_divergence_ends_training(backend, mlp, image_task, poisoned):
    with pytest.raises(Diverged, match="particle 1: "):
        train(backend, mlp, poisoned(image_task, [SEEDS[1][1]]))


def test_when_all_particles_diverge_training_ends_and_returns_none(backend, mlp, image_task, poisoned):
    told = GoOn()
    assert train(backend, mlp, poisoned(image_task, [seed for _, seed in SEEDS]), progress=told) == []
    assert sorted(told.broken) == [0, 1, 2]
    if backend is not own:
        assert max(map(told.steps.count, range(3))) == 5


def test_a_diverged_particle_of_a_stack_is_not_reported_again(mlp, image_task, poisoned):
    told = GoOn()
    train(BACKENDS["vmapped"], mlp, poisoned(image_task, [SEEDS[1][1]]), progress=told)
    assert [told.steps.count(index) for index in range(3)] == [12, 5, 12]


class SharedGoOn(FolderProgress):
    """GoOn on rank 0, with particles of other ranks in a shared folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.broken: dict[int, Diverged] = {}

    def on_diverged(self, index, error):
        self.broken[index] = error


@pytest.mark.fast_cases(1)
@pytest.mark.parametrize(("who", "size"), [(0, 2), (2, 3)])
def test_ranks_go_on_without_a_particle_that_diverged_on_any_of_them(who, size, small, trained, same, poisoned):
    with small.led(size) as ranks:
        sound = trained(ranks, small.model)
    small.pids = []
    small.task = poisoned(small.task, [SEEDS[who][1]])
    told = SharedGoOn(small.folder)
    with small.led(size) as ranks:
        found = trained(ranks, small.model, progress=told)
    assert [p.index for p in found] == [index for index in range(3) if index != who]
    assert all(same(p.weights, sound[p.index].weights) for p in found)
    assert list(told.broken) == [who]
    assert f"particle {who}: the training loss became nan" in str(told.broken[who])
    assert told.broken[who].steps == 6


@pytest.mark.slow
@pytest.mark.parametrize("go_on", [False, True])
def test_ranks_that_share_a_particle_lose_it_together(go_on, small, trained, poisoned):
    small.task = poisoned(small.task, [SEEDS[0][1]])
    with small.led(2, particles=1) as ranks:
        if go_on:
            told = SharedGoOn(small.folder)
            found = trained(ranks, small.model, seeds=SEEDS[:2], progress=told)
            assert [p.index for p in found] == [1]
            assert list(told.broken) == [0]
        else:
            with pytest.raises(Diverged, match="particle 0: "):
                trained(ranks, small.model, seeds=SEEDS[:2])


def test_the_mean_with_a_particle_that_is_not_finite_is_refused(mlp, image_task):
    particles = train(Sequential, mlp, image_task)
    for value in (torch.nan, torch.inf):
        weights = {n: v.clone() for n, v in particles[0].weights.items()}
        weights["1.weight"].view(-1)[1] = value
        with pytest.raises(SwampError, match=r"particle 0 has NaN or infinity in '1\.weight'"):
            require_unbroken([replace(particles[0], weights=weights), *particles[1:]])


class Masking(nn.Module):
    """Keeps what many transformers keep: the infinities that mask attention."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3).double()
        self.register_buffer("minus", torch.full((3, 3), -torch.inf).double().triu(1))

    def forward(self, inputs):
        return self.minus.softmax(-1).sum() * self.layer(inputs.flatten(1))


def test_a_buffer_of_infinities_is_no_fault_and_stays_what_it_is_in_means(image_task):
    """It was NaN in the mean of two samples, and so was everything that the averaged network said."""
    with isolated(Seed(0)):
        model = Masking()
    for name, build in BACKENDS.items():
        particles = train(build, model, image_task)
        assert len(particles) == 3, name
        assert torch.equal(mean_of(particles)["minus"], model.minus)
        assert all(torch.equal(p.weights["minus"], model.minus) for p in particles)
        between = interpolate(particles[0].weights, particles[1].weights, 0.3)
        assert torch.equal(between["minus"], model.minus)
