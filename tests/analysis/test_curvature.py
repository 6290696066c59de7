"""Products and traces equal those of the dense Hessian, and measuring them changes nothing."""

import copy
import itertools
import json
import math
from threading import Event

import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.func import functional_call, grad, jacrev
from torch.nn import functional as F

from swamp.algorithms import Plan
from swamp.analysis import Hessian, hutchinson
from swamp.analysis.analysis_tasks import AnalysisSettings
from swamp.analysis.curvature import curvature_at, curvature_tasks
from swamp.analysis.run_data import RunData
from swamp.datasets.problem import DataOptions
from swamp.errors import MaskError, SwampError
from swamp.masks import Mask
from swamp.runs.config import RunConfig
from swamp.runs.execute import start
from swamp.runs.run_progress import Reporter
from swamp.training import Seed, Task, TensorData, Training, with_reestimated_batchnorm
from swamp.training.data import mixed_batches, sampled
from swamp.training.loop import fit
from swamp.training.rng import isolated

from .known_losses import planted, symmetric
from .runs import records_of


class Tied(nn.Module):
    """A tied weight, dropout, and a bias in which the loss is linear."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.again = nn.Linear(4, 4, bias=False)
        self.again.weight = self.inner.weight
        self.dropout = nn.Dropout(0.5)

    def forward(self, inputs):
        return self.again(self.dropout(torch.tanh(self.inner(inputs))))


def network(kind: str) -> tuple[nn.Module, tuple[int, ...]]:
    with isolated(Seed(1)):
        if kind == "mlp":
            return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 4)).double(), (4,)
        if kind == "normed":
            return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 4)).double(), (4,)
        if kind == "tied":
            return Tied().double(), (4,)
        layers = [nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 4)]
        return nn.Sequential(*layers).double(), (1, 6, 6)


def problem(kind: str, examples: int = 40) -> tuple[nn.Module, Task]:
    model, shape = network(kind)
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(examples, *shape, generator=generator, dtype=torch.float64) + 1
    data = TensorData(inputs, torch.randint(0, 4, (examples,), generator=generator))
    return model, Task(data, data)


def exact(model: nn.Module, task: Task, examples: int) -> torch.Tensor:
    """The dense Hessian at the weights of `model`."""
    model = copy.deepcopy(model).eval()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    flat = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    def loss(flat):
        parts = flat.split([shape.numel() for shape in shapes.values()])
        values = {name: part.view(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}
        some = sampled(task.train, examples)
        return F.cross_entropy(functional_call(model, values, (some.inputs,)), some.targets)

    return jacrev(grad(loss))(flat)


def half(model: nn.Module) -> Mask:
    """Prune every second weight; also in the model."""
    mask = Mask(
        {name: (torch.arange(p.numel()) % 2 == 0).view(p.shape) for name, p in model.named_parameters() if p.dim() > 1}
    )
    mask.apply_(model)
    return mask


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("kind", ["mlp", "normed", "tied", "conv"])
def test_products_equal_those_of_the_dense_hessian(kind, batched):
    model, task = problem(kind)
    hessian = Hessian(model, task, model.state_dict(), examples=31, batch_size=7)
    hessian.batched = batched
    found = hessian(torch.eye(hessian.size, dtype=torch.float64))
    assert kind == "conv" or hessian.batched == batched
    expected = exact(with_reestimated_batchnorm(model, task.train, examples=31), task, 31)
    assert float(expected.abs().max()) > 0.05
    assert torch.allclose(found, expected, atol=1e-12)


def test_a_network_without_vmap_support_takes_one_vector_at_a_time():
    class Awkward(torch.autograd.Function):
        generate_vmap_rule = False

        @staticmethod
        def forward(ctx, inputs):
            ctx.save_for_backward(inputs)
            return inputs.square()

        @staticmethod
        def backward(ctx, slope):
            (inputs,) = ctx.saved_tensors
            return 2 * inputs * slope * (1.0 if float(slope.detach().sum()) < math.inf else 0.0)

    class Looking(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4).double()

        def forward(self, inputs):
            return Awkward.apply(self.inner(inputs))

    _, task = problem("mlp")
    model = Looking()
    plain = Hessian(model, task, model.state_dict())
    trying = Hessian(model, task, model.state_dict())
    trying.batched = True
    vectors = torch.eye(plain.size, dtype=torch.float64)[:5]
    assert torch.equal(trying(vectors), plain(vectors))
    assert not trying.batched


def test_the_mean_over_all_sign_vectors_is_each_trace_exactly(monkeypatch):
    matrix = symmetric(10)
    model, task = planted(matrix)
    model.second.data[1::2] = 0
    mask = Mask({"second": model.second.data != 0})
    table = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=10))).double()
    monkeypatch.setattr("swamp.analysis.hessian_trace.random_signs", lambda size, seed: table[seed.path[-1]])
    found = hutchinson(Hessian(model, task, model.state_dict(), mask), max_probes=1024, tolerance=0)
    alive = torch.tensor([1, 1, 1, 1, 1, 0, 1, 0, 1, 0]).double()
    diagonal = matrix.diag()
    assert found.whole.probes == 1024
    assert found.whole.mean == pytest.approx(float(diagonal.sum()), abs=1e-9)
    assert found.active.mean == pytest.approx(float(alive @ diagonal), abs=1e-9)
    assert found.layers["first"].mean == pytest.approx(float(diagonal[:4].sum()), abs=1e-9)
    assert found.layers["second"].mean == pytest.approx(float(diagonal[4:].sum()), abs=1e-9)
    # The standard deviation over all signs is sqrt(2 * sum of squares off the diagonal of the block).
    block = (matrix - torch.diag(diagonal)) * alive[:, None] * alive
    assert found.active.error * math.sqrt(1023) == pytest.approx(math.sqrt(2 * float(block.square().sum())), rel=1e-9)


def test_one_probe_is_exact_for_a_diagonal():
    model, task = planted(torch.diag(torch.arange(9.0)))
    model.second.data[2:] = 0
    mask = Mask({"second": model.second.data != 0})
    found = hutchinson(Hessian(model, task, model.state_dict(), mask), min_probes=1, max_probes=1)
    assert found.whole.mean == pytest.approx(36, abs=1e-5)
    assert found.active.mean == pytest.approx(15, abs=1e-5)
    assert (found.layers["first"].mean, found.layers["second"].mean) == pytest.approx((6, 30), abs=1e-5)
    assert math.isnan(found.whole.error)


@pytest.mark.parametrize("kind", ["mlp", "normed"])
def test_traces_of_a_network_lie_within_their_standard_errors(kind):
    model, task = problem(kind)
    mask = half(model)
    found = hutchinson(Hessian(model, task, model.state_dict(), mask, only=mask), min_probes=300, max_probes=300)
    names = [name for name, p in model.named_parameters() for _ in range(p.numel())]
    chosen = torch.tensor([name in mask for name in names])
    whole = exact(with_reestimated_batchnorm(model, task.train), task, 40)[chosen][:, chosen]
    alive = torch.cat([mask[name].flatten() for name in mask])
    assert abs(found.whole.mean - float(whole.trace())) < 3 * found.whole.error < 0.2 * found.whole.mean
    assert abs(found.active.mean - float(whole.diag()[alive].sum())) < 3 * found.active.error
    assert list(found.layers) == list(mask)
    assert sum(part.mean for part in found.layers.values()) == pytest.approx(found.whole.mean)


def test_probes_depend_only_on_the_seed_and_their_number():
    model, task = problem("mlp")
    hessian = Hessian(model, task, model.state_dict())
    one, same, other = (hutchinson(hessian, max_probes=20, tolerance=0, seed=seed) for seed in (0, 0, 1))
    assert one == same
    assert one.whole.mean != other.whole.mean
    assert curvature_at(model, task, model.state_dict()) == curvature_at(model, task, model.state_dict())


def test_probes_are_added_until_the_error_is_small_enough():
    model, task = planted(torch.diag(torch.full((12,), 3.0).double()) + 0.3 * symmetric(12))
    hessian = Hessian(model, task, model.state_dict())

    def asked(tolerance, min_probes=2, max_probes=400):
        return hutchinson(hessian, tolerance=tolerance, min_probes=min_probes, max_probes=max_probes).whole

    assert asked(10).probes == 2
    assert asked(10, min_probes=7).probes == 7
    assert asked(0, max_probes=9).probes == 9
    found = asked(0.02)
    assert 10 < found.probes < 400
    assert found.error <= 0.02 * found.mean
    # One round earlier it was larger.
    before = asked(0, max_probes=found.probes - 4)
    assert before.error > 0.02 * before.mean


def test_the_trace_of_active_weights_must_also_reach_the_tolerance():
    # Only the block of the first four weights has noise, which is small relative to the whole trace.
    matrix = torch.diag(torch.full((12,), 100.0).double())
    matrix[:4, :4] = symmetric(4)
    model, task = planted(matrix)
    model.second.data.zero_()
    mask = Mask({"second": model.second.data != 0})
    found = hutchinson(Hessian(model, task, model.state_dict(), mask), tolerance=0.1, max_probes=60)
    assert found.whole.error < 0.1 * found.whole.mean
    assert found.active.probes > 8


def test_normalisation_statistics_are_re_estimated_at_the_weights():
    model, task = problem("normed", examples=600)
    stale = copy.deepcopy(model)
    stale[1].running_mean += 5
    found, again = (Hessian(m, task, m.state_dict(), examples=600) for m in (model, stale))
    vector = torch.ones(1, found.size)
    assert torch.equal(found(vector), again(vector))
    # By hand: the layer's inputs over the two whole batches of 256.
    mixed = torch.cat([inputs for inputs, _ in mixed_batches(task.train, 256)])
    seen = model[0](mixed[:512]).detach().view(2, 256, 3)
    assert torch.allclose(found.model[1].running_mean, seen.mean((0, 1)))
    assert torch.allclose(found.model[1].running_var, seen.var(1).mean(0))
    assert torch.equal(stale[1].running_mean, torch.full((3,), 5.0).double())


def trained(classes: int) -> tuple[nn.Module, Task]:
    """A classifier near a minimum, in float32: outliers, and a bulk near 0."""
    generator = torch.Generator().manual_seed(4)
    targets = torch.randint(0, classes, (300,), generator=generator)
    inputs = torch.randn(classes, 12, generator=generator)[targets] + torch.randn(300, 12, generator=generator)
    data = TensorData(inputs, targets)
    with isolated(Seed(1)):
        model = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, classes))
    task = Task(data, data)
    fit(model, task, Training(epochs=10, batch_size=50, lr=0.1, swa=False), Seed(0))
    return model, task


LOSSES = {
    "two classes": lambda: trained(2),
    "ten classes": lambda: trained(10),
    "random matrix": lambda: planted(symmetric(200)),
    "slowly falling": lambda: planted(torch.diag(1 / torch.arange(1, 301).double().sqrt())),
    "evenly spaced": lambda: planted(torch.diag(torch.linspace(0, 1, 150).double())),
}


def largest_by_scipy(hessian: Hessian, count: int) -> list[float]:
    """The largest eigenvalues by ARPACK, of the same products."""

    def product(vector):
        return hessian(torch.from_numpy(vector.reshape(1, -1)))[0].numpy()

    operator = LinearOperator((hessian.size, hessian.size), matvec=product, dtype=float)
    found = eigsh(operator, count, which="LA", return_eigenvectors=False, tol=1e-9, maxiter=10_000)
    return sorted((float(value) for value in found), reverse=True)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_the_five_largest_eigenvalues_are_those_of_scipy(loss):
    model, task = loss()
    expected = largest_by_scipy(Hessian(model, task, model.state_dict()), 5)
    found = curvature_at(model, task, model.state_dict())
    assert [one.value for one in found.top] == pytest.approx(expected, rel=1e-4)
    for one, value in zip(found.top, expected, strict=True):
        assert one.residual <= 1e-4 * one.value
        assert abs(one.value - value) <= one.residual + 1e-6 * value


@pytest.mark.parametrize("steps", [2, 8, 12, 40])
def test_with_few_products_only_what_has_converged_is_shown(steps):
    model, task = planted(torch.diag(1 / torch.arange(1, 301).double()))
    found = curvature_at(model, task, model.state_dict(), lanczos_steps=steps)
    expected = [1, 1 / 2, 1 / 3, 1 / 4, 1 / 5][: len(found.top)]
    assert [one.value for one in found.top] == pytest.approx(expected, rel=1e-4)
    assert len(found.top) == {2: 0, 8: 1, 12: 3, 40: 5}[steps]
    assert sum(found.density.value) > 0


def test_no_more_products_are_taken_than_needed(monkeypatch):
    model, task = planted(torch.diag(torch.cat([torch.arange(90.0, 140.0, 10), torch.linspace(0, 1, 295)]).double()))
    products = []
    call = Hessian.__call__
    monkeypatch.setattr(Hessian, "__call__", lambda self, vectors: products.append(len(vectors)) or call(self, vectors))
    found = curvature_at(model, task, model.state_dict(), max_probes=4)
    assert [one.value for one in found.top] == pytest.approx([130, 120, 110, 100, 90])
    # Four of the trace, and at least twelve of Lanczos, for the density.
    assert sum(products) == 4 + 12


def test_model_weights_gradients_and_generators_do_not_change():
    model, task = problem("normed")
    mask = half(model)
    model[0].eval()
    F.cross_entropy(model(task.train.inputs), task.train.targets).backward()
    before = copy.deepcopy(model.state_dict())
    slopes = [parameter.grad.clone() for parameter in model.parameters()]
    modes = [module.training for module in model.modules()]
    torch.manual_seed(5)
    noise = torch.get_rng_state()
    other = {name: value * 2 for name, value in before.items()}
    kept = {name: value.clone() for name, value in other.items()}
    curvature_at(model, task, other, mask, max_probes=8, lanczos_steps=3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, kept[name]) for name, value in other.items())
    assert all(torch.equal(p.grad, slope) for p, slope in zip(model.parameters(), slopes, strict=True))
    assert modes == [module.training for module in model.modules()]
    assert torch.equal(noise, torch.get_rng_state())


def test_masks_names_and_probe_counts_that_do_not_fit_are_refused():
    model, task = problem("mlp")
    dense = copy.deepcopy(model.state_dict())
    mask = half(model)
    with pytest.raises(MaskError, match="not zero"):
        curvature_at(model, task, dense, mask)
    with pytest.raises(SwampError, match="must contain parameter names of Sequential"):
        Hessian(model, task, dense, only=["0.weights"])
    with pytest.raises(SwampError, match="got 3 and 2"):
        hutchinson(Hessian(model, task, dense), min_probes=3, max_probes=2)


def test_weights_that_are_not_finite_give_nan():
    model, task = problem("mlp")
    wild = {name: torch.full_like(value, math.nan) for name, value in model.state_dict().items()}
    found = curvature_at(model, task, wild)
    assert math.isnan(found.trace.whole.mean)
    assert found.trace.whole.probes == 4
    assert math.isnan(found.top[0].value)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    plan = Plan(sparsity=0.75, particles=(2,), prune_fraction=(0.5,), ticket_epochs=1, barrier_threshold=1.0)
    training = Training(epochs=2, batch_size=64, lr=0.05, swa_fraction=0.5)
    config = RunConfig("tiny", "digits", "mlp-16", plan, training, DataOptions(examples=640), threads=1)
    path = tmp_path_factory.mktemp("run") / "run"
    start(config, path, Reporter(), Event())
    return path


@pytest.mark.slow
def test_every_model_of_a_run_has_a_record_that_is_computed_once(run, monkeypatch):
    run_data, settings = RunData.open(run), AnalysisSettings(examples=100, curvature_particles=2)
    records = list(records_of(run_data, curvature_tasks, settings))
    keys = [f"curvature/cycle-{c:02d}/{of}" for c in range(3) for of in ("mean", "particle-0", "particle-1")]
    assert [record["key"] for record in records] == keys
    dense, last = records[0], records[-1]
    assert dense["trace"] == dense["active"]
    assert (last["cycle"], last["sparsity"], last["of"]) == (2, pytest.approx(0.75, abs=1e-3), "particle-1")
    assert last["active"]["mean"] < last["trace"]["mean"]
    assert set(last["trace"]) == set(last["active"]) == {"mean", "error", "probes"}
    assert set(last["layers"]) == {name for name, _ in run_data.model.named_parameters()}
    assert len(last["top"]) == 5
    assert last["top"][0]["value"] > 0
    assert len(last["density"]["at"]) == len(last["density"]["value"]) == 128
    json.dumps(records, allow_nan=False)
    # The second call computes nothing.
    monkeypatch.setattr("swamp.analysis.curvature.curvature_at", None)
    assert list(records_of(RunData.open(run), curvature_tasks, settings)) == json.loads(json.dumps(records))


def test_a_particle_with_its_own_mask_is_evaluated_on_it(run):
    run_data = RunData.open(run)
    particle = run_data.particles(2)[0]
    weights = dict(particle.weights)
    name = next(iter(run_data.cycle(2).mask))
    weights[name] = torch.where(torch.arange(weights[name].numel()).view_as(weights[name]) % 10 == 0, weights[name], 0)
    copied = type(particle)(weights, 0, particle.ticket, "another", 0, 1, (1.0,), 0.0)
    path = run_data.directory.particle(2, 0)
    copied.save(path, run_data.directory.provenance(path))
    try:
        tasks = {task.key: task for task in curvature_tasks(run_data, AnalysisSettings(examples=50))}
        assert tasks["curvature/cycle-02/particle-0"].compute()["sparsity"] > 0.9
    finally:
        particle.save(path, run_data.directory.provenance(path))
