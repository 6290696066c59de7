"""What threads and stacks do when they cannot: they fall back with a reason, stop together, and halve."""

import math
import os
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._inductor.exc import InvalidCxxCompiler
from torch.nn import functional as F
from torch.utils.data import Dataset

from swamp.backends import Progress, Sequential, Threads, Ticket, TrainRequest, Vmapped
from swamp.backends import vmapped as module
from swamp.errors import Diverged
from swamp.masks import Mask
from swamp.training import Seed, Task, Training
from swamp.training.data import DatasetData

SEEDS = [(index, Seed(0).at("particle", index)) for index in range(4)]
TRAINING = Training(epochs=2, batch_size=6, swa_fraction=0, swa=False)


class OneByOne(Dataset):
    def __init__(self, task: Task) -> None:
        self.data = task.train

    def __len__(self) -> int:
        return 18

    def __getitem__(self, index: int):
        return self.data.inputs[index] + torch.rand(1), self.data.targets[index]


class Drawing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(16, 3).double()

    def forward(self, inputs):
        return self.out(inputs.flatten(1)) * torch.rand(1)


class Deciding(nn.Module):
    """Looks at its inputs, which no stack can."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(16, 3).double()

    def forward(self, inputs):
        return self.out(inputs.flatten(1) if inputs.sum() > 0 else -inputs.flatten(1))


class Silent(nn.Module):
    """Refuses a stack, without a message."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(16, 3).double()

    def forward(self, inputs):
        if torch._C._functorch.is_functorch_wrapped_tensor(inputs):
            raise NotImplementedError
        return self.out(inputs.flatten(1))


def assert_trained_alone(backend, model, task, reason):
    ticket, mask = Ticket(model.state_dict(), 0), Mask.ones(model)
    expected = Sequential(model, task).train(TrainRequest(ticket, mask, TRAINING, SEEDS))
    with pytest.warns(UserWarning, match=f"trained sequentially, not .*: {reason}"):
        found = backend.train(TrainRequest(ticket, mask, TRAINING, SEEDS))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one.weights[name], weight) for name, weight in other.weights.items())


@pytest.mark.parametrize("kind", [Threads, Vmapped])
def test_a_model_with_its_own_random_numbers_is_trained_sequentially_with_the_reason(kind, image_task):
    model = Drawing()
    assert_trained_alone(
        kind(model, image_task),
        model,
        image_task,
        "the model, the loss, the optimizer or the augmentation draws random numbers",
    )


def test_data_that_is_fetched_one_by_one_is_not_read_in_threads(mlp, image_task):
    task = replace(image_task, train=DatasetData(OneByOne(image_task)))
    assert_trained_alone(Threads(mlp, task), mlp, task, "examples are fetched one by one")


@pytest.fixture
def one_core():
    """OpenMP leaves the thread that started it on one core, though torch has threads for more."""
    affinity, threads = os.sched_getaffinity(0), torch.get_num_threads()
    os.sched_setaffinity(0, {min(affinity)})
    torch.set_num_threads(2)
    yield
    os.sched_setaffinity(0, affinity)
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_a_process_bound_to_one_core_is_warned_with_the_setting(one_core, mlp, image_task, monkeypatch):
    monkeypatch.setenv("OMP_PROC_BIND", "close")
    assert_trained_alone(Threads(mlp, image_task), mlp, image_task, "OMP_PROC_BIND binds this process to one core")


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
def test_a_process_with_one_core_and_no_binding_gets_no_warning(one_core, mlp, image_task, monkeypatch):
    monkeypatch.setenv("OMP_PROC_BIND", "false")
    Threads(mlp, image_task).train(TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING, SEEDS))


@pytest.mark.parametrize(("model", "reason"), [(Deciding(), "vmap"), (Silent(), "NotImplementedError")])
def test_a_forward_pass_that_cannot_be_stacked_is_not(image_task, model, reason):
    said = rf"its forward pass cannot be stacked \(.*{reason}"
    assert_trained_alone(Vmapped(model, image_task), model, image_task, said)


def test_attention_is_tried_as_a_stack_without_torchs_advice(image_task):
    """torch has no rule to stack it on CPU, and says so for its own developers."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Flatten(1, 2), layer, nn.Flatten(), nn.Linear(16, 3)).double()
    assert not isinstance(Vmapped(model, image_task).step(TRAINING), str)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("no compiler in this house"), "uncompiled: RuntimeError: no compiler in this house"),
        (InvalidCxxCompiler(), "uncompiled: there is no C\\+\\+ compiler. .*apt install g\\+\\+"),
    ],
)
def test_a_step_that_cannot_be_compiled_runs_uncompiled_with_one_warning(
    error, message, mlp, image_task, monkeypatch, recwarn
):
    def refuse(*_, **__):
        # As torch wraps it.
        raise RuntimeError(f"{type(error).__name__}: {error}") if isinstance(error, InvalidCxxCompiler) else error

    monkeypatch.setattr("torch._inductor.compile", refuse)
    backend, ticket, mask = Vmapped(mlp, image_task), Ticket(mlp.state_dict(), 0), Mask.ones(mlp)
    with pytest.warns(UserWarning, match=message):
        found = backend.train(TrainRequest(ticket, mask, TRAINING, SEEDS))
    backend.train(TrainRequest(ticket, mask, TRAINING, SEEDS))
    expected = Sequential(mlp, image_task).train(TrainRequest(ticket, mask, TRAINING, SEEDS))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.allclose(one.weights[n], w, rtol=0, atol=1e-10) for n, w in other.weights.items())


def test_a_stack_that_does_not_fit_in_memory_is_halved(mlp, image_task, monkeypatch):
    sizes = []
    original = module.train_loop

    def train_loop(state, *steps):
        sizes.append(len(state.seeds))
        if len(state.seeds) > 1:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        original(state, *steps)

    monkeypatch.setattr(module, "train_loop", train_loop)
    backend, ticket, mask = Vmapped(mlp, image_task, compiled=False), Ticket(mlp.state_dict(), 0), Mask.ones(mlp)
    with pytest.warns(UserWarning, match="do not fit in memory at once; going on with") as told:
        found = backend.train(TrainRequest(ticket, mask, TRAINING, SEEDS))
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert len(told) == 2
    expected = Sequential(mlp, image_task).train(TrainRequest(ticket, mask, TRAINING, SEEDS))
    for one, other in zip(found, expected, strict=True):
        assert all(torch.allclose(one.weights[n], w, rtol=0, atol=1e-10) for n, w in other.weights.items())


def test_any_other_error_in_a_stack_is_raised(mlp, image_task, monkeypatch):
    def train_loop(state, *steps):
        raise RuntimeError("something else")

    monkeypatch.setattr(module, "train_loop", train_loop)
    with pytest.raises(RuntimeError, match="something else"):
        Vmapped(mlp, image_task, compiled=False).train(
            TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING, SEEDS)
        )


def test_a_thread_that_fails_stops_the_others_and_its_error_is_raised(mlp, image_task):
    class Failing(Progress):
        def __init__(self) -> None:
            self.steps = {index: 0 for index, _ in SEEDS}

        def on_step(self, index, step, total, snapshot):
            self.steps[index] = step
            if index == 1 and step == 2:
                raise ValueError("particle 1 broke")

    progress, threads = Failing(), torch.get_num_threads()
    training = replace(TRAINING, epochs=400)
    with pytest.raises(ValueError, match="particle 1 broke"):
        Threads(mlp, image_task).train(
            TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), training, SEEDS, progress=progress)
        )
    assert max(progress.steps.values()) < 1200
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("kind", [Threads, lambda *parts: Vmapped(*parts, compiled=False)])
def test_the_particle_that_diverged_is_named_when_all_train_at_once(kind, mlp, image_task):
    def loss(outputs, targets):
        return F.cross_entropy(outputs, targets) * math.nan

    with pytest.raises(Diverged, match=r"particle [0-3]: the training loss became nan in epoch 1"):
        kind(mlp, replace(image_task, loss=loss)).train(
            TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), TRAINING, SEEDS)
        )


def test_weights_that_are_not_finite_are_noticed_in_a_stack(mlp, image_task):
    def steep(outputs, targets):
        # In float64: a loss that is a number still, and steps that are not.
        return F.cross_entropy(outputs, targets) * 1e290

    with pytest.raises(Diverged, match=r"particle 0: "):
        Vmapped(mlp, replace(image_task, loss=steep), compiled=False).train(
            TrainRequest(Ticket(mlp.state_dict(), 0), Mask.ones(mlp), replace(TRAINING, lr=1e38), SEEDS, last=2)
        )


def test_batches_of_different_shapes_are_not_stacked(mlp):
    batches = [(torch.randn(n, 16).double(), torch.zeros(n, dtype=torch.long)) for n in (6, 6, 4)]
    task = Task.of(batches, batches)
    assert_trained_alone(Vmapped(mlp, task), mlp, task, "the batches it was given differ in shape")
