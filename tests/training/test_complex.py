"""Complex weights are trained, averaged, masked and stored like real ones."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import swamp
from swamp.analysis.hessian import Hessian
from swamp.analysis.weight_space import LinearCombination, ParameterSpace, inner_products
from swamp.backends import Particle, Sequential, Threads, Ticket, TrainRequest, Vmapped
from swamp.errors import Diverged, SwampError
from swamp.files import digest, load_tensors, save_tensors
from swamp.masks import Mask, Scope, hold
from swamp.scores import ScoringContext, score_named
from swamp.training import RunningMean, Seed, Task, Training
from swamp.training.average import interpolate, mean
from swamp.training.mask_updates import Dynamic
from swamp.training.nan_checks import require_finite_weights
from swamp.training.rng import isolated

COMPLEX = (torch.complex64, torch.complex128)
SEEDS = [(index, Seed(0).at("particle", index)) for index in range(3)]
EVERYTHING = Scope(include=("*",))


class Fourier(nn.Module):
    """A layer of a Fourier neural operator: complex weights between two real layers."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(4, 8), nn.Linear(8, 3)
        self.spectrum = nn.Parameter(torch.randn(5, dtype=torch.complex64))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.out(torch.fft.irfft(torch.fft.rfft(self.into(inputs).tanh()) * self.spectrum, n=8))


@pytest.fixture
def fourier() -> nn.Module:
    with isolated(Seed(0).at("init")):
        model = Fourier()
    model.into.double(), model.out.double()
    model.spectrum.data = model.spectrum.data.to(torch.complex128)
    return model


@pytest.mark.parametrize("dtype", COMPLEX)
def test_means_and_lines_go_through_both_parts(dtype: torch.dtype):
    a, b = (torch.tensor(values, dtype=dtype) for values in ([1 + 1j, 2], [3 + 3j, 4 + 2j]))
    assert mean([{"w": a}, {"w": b}])["w"].tolist() == [2 + 2j, 3 + 1j]
    assert interpolate({"w": a}, {"w": b}, 0.25)["w"].tolist() == [1.5 + 1.5j, 2.5 + 0.5j]
    moving = RunningMean(decay=0.25)
    for value in (a, b):
        moving.add({"w": value})
    assert torch.allclose(moving.mean()["w"], a * 2 / 11 + b * 9 / 11)
    assert LinearCombination([{"w": a}, {"w": b}], [0.5, 0.5]).weights()["w"].tolist() == [2 + 2j, 3 + 1j]


def test_a_complex_number_that_is_not_finite_is_found():
    for value in (complex("nan"), complex(0, float("inf"))):
        with pytest.raises(Diverged, match="'w' are not finite"):
            require_finite_weights({"w": torch.tensor([1, value], dtype=torch.complex64)}, 3, Training())


@pytest.mark.parametrize("dtype", COMPLEX)
def test_files_and_digests_keep_every_bit(dtype: torch.dtype, tmp_path, same):
    weights = {"w": torch.randn(2, 3, dtype=dtype), "conjugate": torch.randn(2, dtype=dtype).conj(), "n": torch.ones(2)}
    save_tensors(tmp_path / "w.safetensors", weights, {"a": "b"})
    found, metadata = load_tensors(tmp_path / "w.safetensors")
    assert same(found, weights)
    assert (digest(found), metadata) == (digest(weights), {"a": "b"})
    assert digest({"w": weights["w"].conj()}) != digest({"w": weights["w"]})


@pytest.mark.parametrize("dtype", COMPLEX)
def test_hold_keeps_both_parts_at_zero_even_next_to_infinity(dtype: torch.dtype):
    model = nn.Linear(3, 2, dtype=dtype)
    mask = Mask({"weight": torch.tensor([[True, False, True], [False, True, True]])})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with hold(model, mask, optimizer):
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.full((4, 3), -1.0, dtype=dtype)).abs().square().mean().backward()
            optimizer.step()
            assert bool((model.weight.grad[~mask["weight"]] == 0).all())
        model.weight.grad.fill_(complex("inf"))
        optimizer.step()
        assert bool((model.weight[~mask["weight"]] == 0).all())
        model.weight.data[mask["weight"]] = 1


OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {},
    "adamw": {"optimizer": "adamw", "lr": 0.01},
    "sam and clip": {"sam": 0.1, "clip": 0.05},
    "asam": {"sam": 0.5, "sharpness": "asam"},
    "s2-sam": {"sam": 0.1, "sharpness": "s2-sam"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("build", [Threads, Vmapped])
def test_backends_agree(build, options, fourier, small_task):
    training = Training(**{"epochs": 4, "batch_size": 6, "swa_fraction": 0.5, "lr": 0.05, **options})
    ticket, mask = Ticket(fourier.state_dict(), 0), Mask.ones(fourier, EVERYTHING)
    mask = Mask({name: torch.arange(t.numel()).view(t.shape) % 3 != 0 for name, t in mask.items()})
    expected = Sequential(fourier, small_task).train(TrainRequest(ticket, mask, training, SEEDS))
    backend = build(fourier, small_task, compiled=False) if build is Vmapped else build(fourier, small_task)
    found = backend.train(TrainRequest(ticket, mask, training, SEEDS))
    for one, other in zip(found, expected, strict=True):
        assert one.averaged == 2
        for name, weight in other.weights.items():
            assert torch.allclose(one.weights[name], weight, rtol=0, atol=1e-10), name
    assert not torch.equal(expected[0].weights["spectrum"], expected[1].weights["spectrum"])


def test_fused_steps_are_those_of_torch(fourier, small_task):
    from swamp.backends.functional_optimizer import FunctionalOptimizer

    for optimizer in (torch.optim.AdamW, torch.optim.SGD):
        weights = [nn.Parameter(torch.randn(3, dtype=torch.complex128)) for _ in range(2)]
        weights[1].data.copy_(weights[0].data)
        usual, fused = (optimizer([w], lr=0.1, weight_decay=0.1) for w in weights)
        function = FunctionalOptimizer(fused)
        for step in range(3):
            weights[0].grad = torch.full((3,), 1 + 2j * step, dtype=torch.complex128)
            usual.step()
            function.update([weights[1].data], [weights[0].grad], function.state, function.next_numbers())
        assert torch.allclose(*weights, rtol=1e-12)


@pytest.mark.parametrize("score", ["magnitude", "random", "snip", "taylor", "fisher", "grasp"])
def test_a_complex_weight_scores_as_its_effect_on_the_loss(score: str, fourier, small_task):
    mask = Mask.ones(fourier, EVERYTHING)

    def batches():
        return small_task.train.in_order(20)

    context = ScoringContext(Seed(0).generator(), batches=batches, examples=100)
    if score == "grasp":
        x = torch.randn(40, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        context = ScoringContext(Seed(0).generator(), batches=lambda: [(x, torch.arange(40) % 3)], examples=100)
    scores = score_named(score)(fourier, mask, context)["spectrum"]
    assert scores.shape == (5,)
    assert not scores.is_complex()
    if score == "snip":
        # |dL/dc| at c = 1 for a real factor c on each weight.
        factors = torch.ones(5, dtype=torch.float64, requires_grad=True)
        inputs, targets = next(batches())
        weights = {"spectrum": fourier.spectrum.detach() * factors}
        loss = nn.functional.cross_entropy(torch.func.functional_call(fourier, weights, (inputs,)), targets)
        assert torch.allclose(scores, torch.autograd.grad(loss, factors)[0].abs())


def test_synflow_and_curvature_refuse_complex_weights_by_name(fourier, small_task):
    context = ScoringContext(Seed(0).generator(), batches=lambda: small_task.train.in_order(20))
    with pytest.raises(SwampError, match="synflow is defined for real weights, and spectrum are complex"):
        score_named("synflow")(fourier, Mask.ones(fourier), context)
    with pytest.raises(SwampError, match="Hessian is defined for real parameters, and spectrum"):
        Hessian(fourier, small_task, fourier.state_dict())
    assert Hessian(fourier, small_task, fourier.state_dict(), only=["out.weight"]).size == 24


def test_weight_space_has_two_coordinates_for_a_complex_weight(fourier):
    space, state = ParameterSpace(fourier), fourier.state_dict()
    vector = space.vector(state)
    assert len(vector) == sum((1 + p.is_complex()) * p.numel() for p in fourier.parameters())
    assert torch.equal(space.state(vector)["spectrum"], fourier.spectrum)
    other = {**state, "spectrum": state["spectrum"] + 3j}
    assert float(inner_products([other], state, ["spectrum"])) == pytest.approx(5 * 9)


@pytest.mark.parametrize("method", ["swamp", "rigl-swamp-own", "sup-tickets", "lrr"])
def test_a_run_averages_and_prunes_complex_weights(method: str, fourier, small_task, tmp_path):
    seen: list[Particle] = []

    class Spy(Sequential):
        def train(self, *args: Any, **kwargs: Any) -> list[Particle]:
            found = super().train(*args, **kwargs)
            seen[:] = found
            return found

    training = Training(epochs=8, batch_size=6, swa_fraction=0.5)
    plan = swamp.Plan(
        method=method, sparsity=0.5, cycles=1, particles=(2,), include=("*",), exclude=("*bias",), ticket_epochs=1,
        dynamic=Dynamic(update_interval=3), barrier_points=3, barrier_threshold=1.0,
        allocation="uniform",
    )  # fmt: skip
    last = list(swamp.cycles(fourier, small_task, plan, training, backend=Spy(fourier, small_task)))[-1]
    assert last.mask["spectrum"].sum() < 5
    if method == "swamp":
        expected = torch.stack([particle.weights["spectrum"] for particle in seen]).mean(0)
        assert torch.allclose(last.weights["spectrum"], expected, rtol=1e-12)
        seen[0].save(tmp_path / "p.safetensors")
        assert torch.equal(Particle.load(tmp_path / "p.safetensors").weights["spectrum"], seen[0].weights["spectrum"])


def test_complex_inputs_that_are_not_finite_are_named(fourier, small_task):
    inputs = torch.randn(12, 4, dtype=torch.complex64)
    inputs[2, 1] = complex("nan")
    model = nn.Sequential(nn.Linear(4, 3, dtype=torch.complex64))
    task = Task.of(
        train=(inputs, torch.zeros(12, dtype=torch.long)), test=(inputs[:2], torch.zeros(2, dtype=torch.long)),
        forward=lambda m, x: m(x).abs(),
    )  # fmt: skip
    with pytest.raises(SwampError, match="training data: inputs of example 2"):
        swamp.prune(model, task, sparsity=0.5, cycles=1, training=Training(epochs=2, batch_size=3))
