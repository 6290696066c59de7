"""Muon, and optimizers that are not torch's: built by name, held, resumed bit for bit, switched to evaluation."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import swamp
from swamp.training.loop import fit
from swamp.training.optimizers import build_optimizer

CODE = '''
import torch

class Averaged(torch.optim.Optimizer):
    """Schedule-free SGD (Defazio et al. 2024): the parameters hold y in training, x for evaluation."""

    def __init__(self, params, lr=0.1, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta, "k": 0, "train_mode": False})
        self.calls = []

    @torch.no_grad()
    def eval(self):
        self.calls.append("eval")
        for group in self.param_groups:
            if group["train_mode"]:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.lerp_(self.state[p]["z"], 1 - 1 / group["beta"])
            group["train_mode"] = False

    @torch.no_grad()
    def train(self):
        self.calls.append("train")
        for group in self.param_groups:
            if not group["train_mode"]:
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.lerp_(self.state[p]["z"], 1 - group["beta"])
            group["train_mode"] = True

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["train_mode"], "step in evaluation mode"
            group["k"] += 1
            c = 1 / group["k"]
            for p in group["params"]:
                state = self.state[p]
                z = state.setdefault("z", p.clone())
                p.lerp_(z, c)
                p.add_(p.grad, alpha=group["lr"] * (group["beta"] * (1 - c) - 1))
                z.sub_(p.grad, alpha=group["lr"])

class Lists(torch.optim.Optimizer):
    """State of nested lists, as SOAP's preconditioners."""

    def __init__(self, params, lr=0.1, weight_decay=0.0):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                lists = state.setdefault("GG", [torch.zeros(p.shape[0], p.shape[0]), [], None])
                flat = p.grad.reshape(p.shape[0], -1)
                lists[0].lerp_(flat @ flat.T, 0.1)
                p.sub_(((torch.eye(p.shape[0]) + lists[0]).inverse() @ flat).reshape(p.shape), alpha=group["lr"])

def wrong(params):
    return 3

def fails(params, lr):
    raise ValueError("no such thing")
'''

TRAINING = swamp.Training(epochs=3, batch_size=16, lr=0.05, swa_fraction=0.0, swa=False, schedule="constant")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "own_optimizers.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def problem():
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    y = x[:, :3].argmax(1)
    model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    return model, swamp.Task.of(train=(x[:48], y[:48]), test=(x[48:], y[48:]))


needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch has Muon since 2.9")
NAMES = [pytest.param("Muon", marks=needs_muon), "own_optimizers:Averaged", "own_optimizers.py:Lists"]


@pytest.mark.parametrize("name", NAMES)
def test_a_training_resumed_at_any_step_has_the_same_bits_and_keeps_its_zeros(folder, name):
    training, taken = replace(TRAINING, optimizer=name), []
    model, task = problem()
    mask = swamp.Mask({"0.weight": model[0].weight.abs() > 0.2, "3.weight": model[3].weight.abs() > 0.1})
    mask.apply_(model)
    whole = fit(model, task, training, swamp.Seed(1), mask=mask, on_step=lambda *step: taken.append(step[2]()))
    mask.require_zeros(whole.weights)
    for snapshot in (taken[0], taken[4]):
        again, _ = problem()
        rest = fit(again, task, training, swamp.Seed(1), mask=mask, resume=snapshot)
        assert all(torch.equal(rest.weights[key], value) for key, value in whole.weights.items())


@pytest.mark.parametrize("kind", [swamp.backends.Sequential, swamp.backends.Vmapped])
def test_groups_keep_the_ratios_of_their_learning_rates(kind):
    def factory(parameters):
        frozen, *others = parameters
        return torch.optim.SGD(
            [{"params": [frozen], "lr": 0.0}, {"params": others[:3], "lr": 0.1}, {"params": others[3:]}]
        )

    def trained(optimizer, snapshots=None):
        model, task = problem()
        start = {name: value.clone() for name, value in model.state_dict().items()}
        ticket, seeds = swamp.backends.Ticket(start, 0), [(0, swamp.Seed(1)), (1, swamp.Seed(2))]
        request = swamp.backends.TrainRequest(ticket, swamp.Mask.ones(model), TRAINING, seeds, last=1)
        (particle, _) = kind(model, task, optimizer).train(request)
        return {name: particle.weights[name] - start[name] for name, _ in model.named_parameters()}

    found, whole = trained(factory), trained(lambda parameters: torch.optim.SGD(parameters))
    # The default rate of SGD, 0.001, is a hundredth of the largest.
    ratios = [0.0, 1.0, 1.0, 1.0, 0.01, 0.01]
    for (name, change), ratio in zip(found.items(), ratios, strict=True):
        torch.testing.assert_close(change, ratio * whole[name], rtol=1e-3, atol=1e-6)


def test_a_resumed_training_has_the_ratios_of_the_new_optimizer_and_the_same_bits(folder):
    def factory(parameters):
        first, *others = parameters
        return torch.optim.AdamW([{"params": [first], "lr": 0.02}, {"params": others, "lr": 0.1}])

    model, task = problem()
    taken = []
    training = replace(TRAINING, schedule="cosine")
    whole = fit(model, task, training, swamp.Seed(1), optimizer=factory, on_step=lambda *step: taken.append(step[2]()))
    again, _ = problem()
    rest = fit(again, task, training, swamp.Seed(1), optimizer=factory, resume=taken[3])
    assert all(torch.equal(rest.weights[key], value) for key, value in whole.weights.items())


def test_a_schedule_free_optimizer_is_averaged_and_ends_in_its_evaluation_mode(folder):
    made = []

    def factory(parameters):
        from own_optimizers import Averaged

        made.append(Averaged(parameters, lr=0.05))
        return made[-1]

    model, task = problem()
    training = replace(TRAINING, swa_fraction=0.5, swa=True)
    swa = fit(model, task, training, swamp.Seed(1), optimizer=factory)
    plain_model, _ = problem()
    plain = fit(plain_model, task, replace(training, swa=False), swamp.Seed(1), optimizer=factory)
    # Switched to evaluation for each of the samples and at the end, and back after each sample.
    assert made[0].calls == ["train", *(["eval", "train"] * swa.averaged), "eval"]
    assert made[1].calls == ["train", "eval"]
    # x is the mean of all z: the end of training without SWA is an average of all steps.
    assert plain.averaged == plain.steps
    group, state = made[1].param_groups[0], made[1].state
    assert not group["train_mode"]
    assert all(torch.equal(p, plain.weights[n]) for n, p in plain_model.named_parameters() if p in state)


@needs_muon
def test_muon_steps_matrices_and_adamw_the_rest():
    model, _ = problem()
    optimizer = build_optimizer(model.parameters(), replace(TRAINING, optimizer="Muon"))
    kinds = [type(part).__name__ for part in optimizer.parts]
    assert kinds == ["Muon", "AdamW"]
    assert [[p.dim() for p in group["params"]] for group in optimizer.param_groups] == [[2, 2], [1, 1, 1, 1]]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = [p.detach().clone() for p in model.parameters()]
    model(torch.randn(8, 6)).square().mean().backward()
    optimizer.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_particles_of_every_backend_are_those_of_the_sequential_one(folder, name):
    model, task = problem()
    options = {"sparsity": 0.5, "particles": 2, "training": replace(TRAINING, optimizer=name), "barrier_threshold": 1}
    expected = swamp.prune(model, task, backend="sequential", **options)
    threads = swamp.prune(model, task, backend="threads", **options)
    assert all(torch.equal(threads.model.state_dict()[k], v) for k, v in expected.model.state_dict().items())
    expected.mask.require_zeros(expected.model.state_dict())


def test_a_stack_leaves_optimizers_with_two_modes_to_the_sequential_backend(folder):
    model, task = problem()
    training = replace(TRAINING, optimizer="own_optimizers:Averaged")
    options = {"sparsity": 0.0, "particles": 2, "training": training, "barrier_threshold": 1}
    with pytest.warns(UserWarning, match="the optimizer switches the weights between training and evaluation"):
        stacked = swamp.prune(model, task, backend="vmapped", **options)
    expected = swamp.prune(model, task, backend="sequential", **options)
    assert all(torch.equal(stacked.model.state_dict()[k], v) for k, v in expected.model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_optimizers:Averagd", r"has no 'Averagd'. Did you mean Averaged"),
        ("own_optimizers:wrong", r"gave a int, expected a torch.optim.Optimizer"),
        ("own_optimizers:fails", r"cannot be built from parameters, lr=0.05 .*ValueError: no such thing"),
        ("no_such_module:Thing", r"there is no module named 'no_such_module'. It is looked for in the current folder"),
        ("no_such_file.py:Thing", r"there is no file no_such_file.py"),
    ],
)
def test_a_wrong_reference_is_refused_before_training(folder, name, message):
    model, task = problem()
    with pytest.raises(swamp.SwampError, match=message):
        swamp.prune(model, task, training=replace(TRAINING, optimizer=name), backend="sequential")
