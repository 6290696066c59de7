import copy
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import swamp
from swamp.errors import Diverged, Interrupted, SwampError
from swamp.masks import Mask
from swamp.training import Seed, Task, TensorData, Training
from swamp.training.average import copied, mean
from swamp.training.loop import fit
from swamp.training.rng import isolated, permutation

PLAIN = Training(epochs=3, batch_size=6, lr=0.1, swa_fraction=0, swa=False)
SEED = Seed(11)

OPTIMIZERS: dict[str, tuple[dict[str, Any], Any, Callable[..., torch.optim.Optimizer]]] = {
    "sgd": ({"momentum": 0.0}, None, lambda p: torch.optim.SGD(p, 0.1, weight_decay=5e-4)),
    "momentum": ({}, None, lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=5e-4)),
    "nesterov": ({"nesterov": True}, None, lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=5e-4, nesterov=True)),
    "decay": ({"weight_decay": 0.1}, None, lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=0.1)),
    "adamw": ({"optimizer": "adamw"}, None, lambda p: torch.optim.AdamW(p, 0.1, weight_decay=5e-4)),
    "RMSprop": ({"optimizer": "RMSprop"}, None, lambda p: torch.optim.RMSprop(p, 0.1, weight_decay=5e-4)),
    "factory": ({}, torch.optim.NAdam, torch.optim.NAdam),
}


def by_hand(
    model: nn.Module, task: Task, optimizer: torch.optim.Optimizer, mask: Mask | None, loss: Any
) -> list[float]:
    """Three epochs of a plain loop with cosine decay and masks multiplied in; mean losses of the epochs."""
    data: Any = task.train
    losses: list[float] = []
    weights = dict(model.named_parameters())
    for step in range(9):
        epoch, within = divmod(step, 3)
        chosen = permutation(SEED, epoch, 20)[6 * within : 6 * within + 6]
        value = loss(model(data.inputs[chosen]), data.targets[chosen])
        optimizer.zero_grad()
        value.backward()
        for name in mask or {}:
            weights[name].grad *= mask[name]  # pyright: ignore[reportOptionalSubscript, reportOperatorIssue]
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + math.cos(math.pi * step / 9))
        optimizer.step()
        with torch.no_grad():
            for name in mask or {}:
                weights[name] *= mask[name]  # pyright: ignore[reportOptionalSubscript]
        losses.append(float(value.detach()))
    return [sum(losses[i : i + 3]) / 3 for i in (0, 3, 6)]


def half(model: nn.Module) -> Mask:
    return Mask({name: torch.arange(p.numel()).view(p.shape) % 2 == 0 for name, p in Mask.ones(model).items()})


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("masked", [False, True])
def test_training_equals_a_plain_loop(name: str, masked: bool, small_task, small_net):
    options, factory, reference = OPTIMIZERS[name]
    model, other = small_net(), small_net()
    mask = half(model) if masked else None
    if mask:
        mask.apply_(other)
    trained = fit(model, small_task, replace(PLAIN, **options), SEED, mask=mask, optimizer=factory)
    losses = by_hand(other, small_task, reference(other.parameters()), mask, F.cross_entropy)
    assert (trained.steps, trained.averaged) == (9, 0)
    assert trained.losses == pytest.approx(losses, abs=1e-12)
    for key, value in other.state_dict().items():
        assert torch.allclose(trained.weights[key], value, rtol=0, atol=1e-12)
        assert torch.equal(trained.weights[key], model.state_dict()[key])
    if mask:
        mask.require_zeros(trained.weights)


def test_label_smoothing_is_that_of_the_cross_entropy(small_task, small_net):
    model, other = small_net(), small_net()
    fit(model, small_task, replace(PLAIN, label_smoothing=0.2), SEED)

    def smoothed(outputs: Tensor, targets: Tensor) -> Tensor:
        wanted = 0.8 * F.one_hot(targets, 3).double() + 0.2 / 3
        return -(wanted * outputs.log_softmax(1)).sum(1).mean()

    by_hand(other, small_task, torch.optim.SGD(other.parameters(), 0.1, 0.9, weight_decay=5e-4), None, smoothed)
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.allclose(mine, theirs, rtol=0, atol=1e-12)


def test_label_smoothing_of_another_loss_is_refused(small_task, small_net):
    with pytest.raises(SwampError, match=r"label_smoothing belongs to the loss F\.cross_entropy"):
        fit(small_net(), replace(small_task, loss=nn.MSELoss()), replace(PLAIN, label_smoothing=0.1), SEED)


def test_frozen_parameters_stay_and_others_learn(small_task, small_net):
    model: Any = small_net()
    model[0].requires_grad_(False)
    before = copied(model.state_dict())
    fit(model, small_task, PLAIN, SEED, mask=None)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[2].weight, before["2.weight"])


def test_clipping_bounds_the_norm_over_the_surviving_weights(small_task, small_net):
    model: Any = small_net()
    mask = Mask({"0.weight": torch.eye(8, 4).bool(), "2.weight": torch.eye(3, 8).bool()})
    mask.apply_(model)
    before, inputs = copied(model.state_dict()), small_task.train.inputs
    chosen = permutation(SEED, 0, 20)[:6]
    F.cross_entropy(model(inputs[chosen]), small_task.train.targets[chosen]).backward()
    gradients = {n: p.grad * mask[n] if n in mask else p.grad for n, p in model.named_parameters()}
    norm = float(torch.cat([g.flatten() for g in gradients.values()]).norm())
    limit = norm / 3
    training = replace(PLAIN, epochs=1, clip=limit, momentum=0, weight_decay=0, lr=1.0, schedule="constant")
    fit(model, small_task, training, SEED, mask=mask, last=1)
    for name, gradient in gradients.items():
        moved = before[name] - model.state_dict()[name]
        assert torch.allclose(moved, gradient * (limit / (norm + 1e-6)), rtol=0, atol=1e-12)


def test_weights_average_is_the_mean_of_the_last_epochs_ends(small_task, small_net, same):
    training = replace(PLAIN, epochs=5, swa_fraction=0.6, swa=True)
    ends: list[dict[str, Tensor]] = []
    model = small_net(rich=True)

    def watch(step: int, total: int, snapshot: Any) -> None:
        assert total == 15
        if step in (9, 12, 15):
            ends.append(copied(model.state_dict()))

    trained = fit(model, small_task, training, SEED, on_step=watch)
    assert trained.averaged == len(ends) == 3
    assert same(trained.weights, mean(ends))
    assert torch.allclose(trained.weights["0.weight"], sum(e["0.weight"] for e in ends) / 3, rtol=0, atol=1e-15)
    assert int(trained.weights["1.num_batches_tracked"]) == 15
    last = fit(small_net(rich=True), small_task, replace(training, swa=False), SEED)
    assert last.averaged == 0
    assert same(last.weights, ends[-1])


def test_the_average_is_zero_off_the_mask(small_task, small_net):
    model = small_net()
    trained = fit(model, small_task, replace(PLAIN, swa_fraction=0.7, swa=True), SEED, mask=half(model))
    half(model).require_zeros(trained.weights)
    assert trained.averaged == 2


def test_moving_average_is_over_every_step_as_written_out(small_task, small_net):
    states: list[dict[str, Tensor]] = []
    model = small_net(rich=True)
    training = replace(PLAIN, ema=0.3)
    trained = fit(
        model,
        small_task,
        training,
        SEED,
        mask=half(model),
        on_step=lambda *_: states.append(copied(model.state_dict())),
    )
    assert trained.averaged == len(states) == 9
    for name in ("0.weight", "4.bias", "1.running_var"):
        expected = states[0][name]
        for taken, state in enumerate(states[1:], 1):
            decay = min(0.3, (1 + taken) / (10 + taken))
            expected = decay * expected + (1 - decay) * state[name]
        assert torch.allclose(trained.weights[name], expected, rtol=0, atol=1e-14)
    assert int(trained.weights["1.num_batches_tracked"]) == 9
    half(model).require_zeros(trained.weights)


def test_moving_average_gives_way_to_that_over_the_tail(small_task, small_net, same):
    training = replace(PLAIN, swa_fraction=0.7, swa=True)
    both = fit(small_net(), small_task, replace(training, ema=0.3), SEED)
    assert both.averaged == 2
    assert same(both.weights, fit(small_net(), small_task, training, SEED).weights)


def test_weights_stay_float32_under_bfloat16_and_are_not_those_of_float32(small_task):
    data = replace(small_task.train, inputs=small_task.train.inputs.float())
    types: list[torch.dtype] = []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        types.append(outputs.dtype)
        return F.cross_entropy(outputs, targets)

    ends: list[Tensor] = []
    for precision in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        fit(model, Task(data, data, loss=loss), replace(PLAIN, precision=precision), SEED)
        ends.append(model.weight.detach())
    assert types == [torch.float32] * 9 + [torch.bfloat16] * 9
    assert ends[1].dtype == torch.float32
    assert not torch.equal(ends[1], ends[1].bfloat16().float())
    assert 0 < float((ends[0] - ends[1]).abs().max()) < 0.05


def test_a_part_of_the_steps_equals_that_part_of_the_training(small_task, small_net, same):
    whole, states = small_net(), {}
    fit(
        whole,
        small_task,
        replace(PLAIN, momentum=0),
        SEED,
        on_step=lambda step, *_: states.update({step: copied(whole.state_dict())}),
    )
    model = small_net()
    begun = fit(model, small_task, replace(PLAIN, momentum=0), SEED, last=4)
    assert (begun.steps, len(begun.losses)) == (4, 1)  # finished epochs
    assert same(begun.weights, states[4])
    rest = fit(model, small_task, replace(PLAIN, momentum=0), SEED, first=4)
    assert (rest.steps, len(rest.losses)) == (5, 2)
    assert same(rest.weights, states[9])


def test_training_leaves_the_global_generators_alone(small_task, small_net, generators):
    data = small_task.train
    pairs = torch.utils.data.TensorDataset(data.inputs, data.targets)
    loaded = Task.of(torch.utils.data.DataLoader(pairs), data).train
    for source in (data, loaded):
        before = generators()
        fit(small_net(rich=True), replace(small_task, train=source), replace(PLAIN, sam=0.1), SEED)
        assert generators() == before


def test_dropout_is_a_function_of_the_seed_and_not_of_the_global_generator(small_task, small_net, same):
    runs = []
    for seed in (SEED, SEED, Seed(12)):
        torch.rand(5)
        runs.append(fit(small_net(rich=True), small_task, PLAIN, seed).weights)
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


class NanFrom:
    """Cross-entropy that becomes NaN at a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        self.left -= 1
        return F.cross_entropy(outputs, targets) * (math.nan if self.left < 0 else 1)


def test_a_loss_that_is_not_a_number_names_the_epoch(small_task, small_net):
    model = small_net()
    with pytest.raises(Diverged, match=r"loss became nan in epoch 2 \(before step 6.*Lower the learning rate"):
        fit(model, replace(small_task, loss=NanFrom(4)), PLAIN, SEED, mask=half(model))
    with pytest.raises(Diverged, match="in epoch 3"):
        fit(small_net(), replace(small_task, loss=NanFrom(4)), PLAIN, SEED, first=3)


@pytest.mark.parametrize("masked", [False, True])
def test_weights_that_are_not_finite_are_noticed_after_the_last_step(masked: bool, small_task, small_net):
    def zero_with_a_wild_gradient(outputs: Tensor, targets: Tensor) -> Tensor:
        del targets
        return (outputs * 0).sum().sqrt()

    model = small_net()
    task = replace(small_task, loss=zero_with_a_wild_gradient)
    with pytest.raises(Diverged, match=r"weights of '0\.weight' are not finite after step 1"):
        fit(model, task, PLAIN, SEED, mask=half(model) if masked else None, last=1)


def test_an_interrupted_training_leaves_no_hook_behind(small_task, small_net, generators):
    model: Any = small_net()
    before = generators()

    def stop(step: int, total: int, snapshot: Any) -> None:
        raise Interrupted("enough")

    with pytest.raises(Interrupted):
        fit(model, small_task, PLAIN, SEED, mask=Mask({"0.weight": torch.eye(8, 4).bool()}), on_step=stop)
    assert generators() == before
    model.zero_grad()
    model(small_task.train.inputs).sum().backward()
    assert model[0].weight.grad.count_nonzero() == 32


class Wrong(TensorData):
    """Gives another number of batches than it promises."""

    more = 0

    def steps(self, batch_size: int) -> int:
        return 3 + self.more

    def shuffled(self, batch_size: int, seed: Seed, epoch: int, first: int = 0) -> Iterator[Any]:
        return iter(list(TensorData.shuffled(self, 2, seed, epoch))[first : 5 - 2 * self.more])


def test_data_with_fewer_batches_than_promised_is_refused(small_task, small_net):
    data = Wrong(small_task.train.inputs, small_task.train.targets)
    Wrong.more = 1
    with pytest.raises(SwampError, match="promised 4 batches an epoch and gave 3"):
        fit(small_net(), replace(small_task, train=data), PLAIN, SEED)


def test_batches_beyond_those_promised_are_left_out(small_task, small_net):
    data = Wrong(small_task.train.inputs, small_task.train.targets)
    Wrong.more = 0
    trained = fit(small_net(), replace(small_task, train=data), PLAIN, SEED)
    assert (trained.steps, len(trained.losses)) == (9, 3)


def test_every_kind_of_batch_gives_the_same_training(small_task, small_net, same):
    data = small_task.train

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small_net()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    fields = Named()
    plain = fit(small_net(), small_task, PLAIN, SEED).weights
    pairs = torch.utils.data.TensorDataset(data.inputs, data.targets)
    loaded = fit(small_net(), Task.of(torch.utils.data.DataLoader(pairs), data), PLAIN, SEED).weights
    named = fit(fields, Task.of(({"x": data.inputs}, data.targets), data), PLAIN, SEED).weights
    assert same(plain, loaded)
    assert same(plain, {name.removeprefix("net."): value for name, value in named.items()})


def test_a_weight_that_one_process_alone_used_has_a_gradient_on_all():
    """As a batch has it: None only for weights that no row of it uses."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.low, self.high, self.never = (nn.Linear(2, 2, bias=False).double() for _ in range(3))

        def forward(self, inputs):
            return (self.high if inputs.sum() > 0 else self.low)(inputs)

    ready = threading.Barrier(2, timeout=30)
    sent: dict[int, list[torch.Tensor]] = {}

    class Half:
        def __init__(self, place: int) -> None:
            self.place = place

        def shard_parameters(self, model):
            return False

        def rows(self, examples):
            return slice(3 * self.place, 3 * self.place + 3)

        def synchronised_batchnorm(self):
            return nullcontext()

        def all_reduce(self, tensors):
            sent[self.place] = [tensor.clone() for tensor in tensors]
            ready.wait()
            for tensor, one, other in zip(tensors, sent[0], sent[1], strict=True):
                tensor.copy_(one + other)
            ready.wait()

    inputs = torch.cat([torch.ones(3, 2), -torch.ones(3, 2)]).double()
    data = TensorData(inputs, torch.tensor([0, 1, 1, 0, 0, 1]))
    training = replace(PLAIN, epochs=2, batch_size=6)
    with isolated(SEED):
        model = Branching()
    before = copy.deepcopy(model.state_dict())
    # The order of the only batch is shuffled; each half decides by the sign of its own sum.
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(fit, copy.deepcopy(model), Task(data, data), training, SEED, exclusive=False, shard=Half(place))
            for place in (0, 1)
        ]
        first, second = (run.result().weights for run in runs)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(first["never.weight"], before["never.weight"])
    assert not torch.equal(first["low.weight"], before["low.weight"])
    assert not torch.equal(first["high.weight"], before["high.weight"])


@pytest.mark.parametrize("options", [{}, {"clip": 1.0}, {"optimizer": "adamw"}, {"sam": 0.1}], ids=str)
def test_an_embedding_with_sparse_gradients_is_trained_as_one_with_dense_ones(options):
    tokens, targets = torch.randint(0, 20, (40, 5), generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3

    def trained(sparse: bool):
        class Bag(nn.Module):
            def __init__(self):
                super().__init__()
                self.embedding, self.output = nn.Embedding(20, 4, sparse=sparse), nn.Linear(4, 3)

            def forward(self, x):
                return self.output(self.embedding(x).mean(1))

        with isolated(Seed(0)):
            model = Bag()
        task = swamp.Task.of(train=(tokens, targets), test=(tokens, targets))
        training = Training(epochs=2, batch_size=10, lr=0.1, **options)
        plan = {"include": ("*weight",), "min_per_layer": 2, "barrier_threshold": 1}
        found = swamp.prune(model, task, sparsity=0.5, cycles=1, particles=2, training=training, **plan)
        assert model.embedding.sparse == sparse
        return found.model.state_dict()

    dense = trained(False)
    assert all(torch.equal(value, dense[name]) for name, value in trained(True).items())
