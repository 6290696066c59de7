"""Dropout with a separate generator draws the numbers that torch would draw, and none from the global generator."""

from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swamp.training import Seed, Task, Training
from swamp.training.dropout import DropoutMode, multipliers_from
from swamp.training.loop import fit, uses_global_rng
from swamp.training.rng import isolated


class Attention(nn.Module):
    def __init__(self, causal: bool = False, **options):
        super().__init__()
        self.causal, self.options = causal, options

    def forward(self, inputs: Tensor) -> Tensor:
        heads = inputs.view(4, 2, 3, 4)
        return F.scaled_dot_product_attention(
            heads, heads + 1, heads * 2, dropout_p=0.4, is_causal=self.causal, **self.options
        )


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.3, batch_first=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.inner(inputs.view(4, 4, 6))


class Functional(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.dropout(F.dropout(inputs, 0.3, self.training), 0.2, self.training)


LAYERS = {
    "dropout": (nn.Dropout(0.3), (4, 24)),
    "in place": (nn.Dropout(0.3, inplace=True), (4, 24)),
    "everything": (nn.Dropout(1.0), (4, 24)),
    "1d": (nn.Dropout1d(0.5), (4, 6, 4)),
    "1d without a batch": (nn.Dropout1d(0.5), (6, 4)),
    "2d": (nn.Dropout2d(0.5), (4, 6, 2, 2)),
    "3d": (nn.Dropout3d(0.5), (4, 6, 1, 2, 2)),
    "functional": (Functional(), (4, 24)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_the_mask_equals_bit_for_bit_that_of_torch_from_its_global_generator(name):
    layer, shape = LAYERS[name]
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    with isolated(Seed(0)):
        torch.manual_seed(9)
        expected = layer.train()(inputs.clone())
        torch.manual_seed(5)
        before = torch.get_rng_state()
        with DropoutMode(multipliers_from(torch.Generator().manual_seed(9))) as mode:
            found = layer(inputs.clone())
        assert torch.equal(before, torch.get_rng_state())
    assert mode.used
    assert torch.equal(found, expected)


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"scale": 0.3}])
def test_attention_drops_weights_after_the_softmax(options):
    # Against the formula with the same zeros: torch's kernels draw in another order.
    inputs = torch.randn((4, 24), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with DropoutMode(multipliers_from(torch.Generator().manual_seed(9))):
        found = Attention(**options)(inputs)
    heads = inputs.view(4, 2, 3, 4)
    weights = heads @ (heads + 1).transpose(-1, -2) * options.get("scale", 0.5)
    if options.get("causal"):
        weights = weights + torch.full((3, 3), -torch.inf, dtype=torch.float64).triu(1)
    zeros = torch.empty(4, 2, 3, 3, dtype=torch.float64).bernoulli_(0.6, generator=torch.Generator().manual_seed(9))
    assert torch.allclose(found, (weights.softmax(-1) * zeros / 0.6) @ (heads * 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize("masked", [None, "bool", "float"])
def test_attention_without_dropout_and_with_next_to_none_are_the_same(masked):
    generator = torch.Generator().manual_seed(2)
    query, key, value = torch.randn(3, 2, 4, 5, 8, generator=generator, dtype=torch.float64)
    allowed = torch.rand(5, 5, generator=generator) > 0.3
    allowed.fill_diagonal_(True)
    mask = {None: None, "bool": allowed, "float": torch.zeros(5, 5).double().masked_fill(~allowed, -9.0)}[masked]
    expected = F.scaled_dot_product_attention(query, key, value, mask)
    with DropoutMode(multipliers_from(torch.Generator().manual_seed(9))):
        assert torch.equal(F.scaled_dot_product_attention(query, key, value, mask), expected)
        # Few enough are dropped that none of the 200 is.
        found = F.scaled_dot_product_attention(query, key, value, mask, dropout_p=1e-9)
    assert torch.allclose(found, expected, rtol=0, atol=1e-7)


def test_grouped_queries_share_keys_and_values():
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(2, 4, 5, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 2, 2, 5, 8, generator=generator, dtype=torch.float64)
    expected = F.scaled_dot_product_attention(query, key, value, enable_gqa=True)
    with DropoutMode(multipliers_from(torch.Generator().manual_seed(9))):
        found = F.scaled_dot_product_attention(query, key, value, dropout_p=1e-9, enable_gqa=True)
    assert torch.allclose(found, expected, rtol=0, atol=1e-7)


def test_evaluation_and_zero_dropout_draw_no_mask():
    inputs = torch.ones(4, 24)
    with DropoutMode(multipliers_from(torch.Generator())) as mode:
        assert torch.equal(nn.Dropout(0.3).eval()(inputs), inputs)
        assert torch.equal(nn.Dropout2d(0.3).eval()(inputs.view(4, 6, 2, 2)).view(4, 24), inputs)
        assert torch.equal(nn.Dropout(0.0).train()(inputs), inputs)
    assert not mode.used


def test_rows_of_a_batch_get_the_rows_of_its_dropout_mask():
    inputs = torch.ones(6, 24)
    with DropoutMode(multipliers_from(torch.Generator().manual_seed(3))):
        whole = F.dropout(inputs, 0.5)
    with DropoutMode(multipliers_from(torch.Generator().manual_seed(3), slice(2, 5), 6)):
        part = F.dropout(inputs[2:5], 0.5)
    assert torch.equal(part, whole[2:5])


def test_training_with_functional_dropout_depends_on_its_seed_only(task):
    """Trained with the global generator seeded, and with a disturbed one, as in threads."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.out(F.dropout(inputs, 0.4, self.training))

    def trained(exclusive: bool) -> Tensor:
        with isolated(Seed(1)):
            model = Net()
        torch.rand(3 if exclusive else 5)
        return fit(
            model, task, Training(epochs=2, swa_fraction=0, batch_size=16), Seed(0), exclusive=exclusive
        ).weights["out.weight"]

    state = torch.get_rng_state()
    assert torch.equal(trained(exclusive=True), trained(exclusive=False))
    torch.set_rng_state(state)


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda x: x, False),
        (lambda x: F.dropout(x, 0.5), False),
        (lambda x: x + torch.rand(1), True),
        (lambda x: F.alpha_dropout(x, 0.5, training=True), True),
        (lambda x: x * __import__("numpy").random.rand(), True),
        (lambda x: x * __import__("random").random(), True),
    ],
)
def test_a_model_with_other_random_numbers_is_detected_without_side_effects(forward, expected, task):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(6)

        def forward(self, inputs: Tensor) -> Tensor:
            return forward(self.norm(inputs))

    net, before = Net().eval(), torch.get_rng_state()
    assert uses_global_rng(net, task, Training(batch_size=16), None) is expected
    assert not net.training
    assert net.norm.num_batches_tracked == 0
    assert torch.equal(before, torch.get_rng_state())


class SGLD(torch.optim.SGD):
    """Adds noise to the weights."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        with torch.no_grad():
            for parameter in self.param_groups[0]["params"]:
                parameter.add_(torch.randn_like(parameter), alpha=0.01)


@pytest.mark.parametrize("where", ["loss", "optimizer", "augmentation", "nowhere"])
def test_random_numbers_of_a_training_step_beside_the_model_are_detected(where, task):
    def noisy(inputs: Tensor, generator: torch.Generator) -> Tensor:
        return inputs + torch.randn(inputs.shape, generator=None if where == "augmentation" else generator).to(inputs)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs + (torch.randn_like(outputs) if where == "loss" else 0), targets)

    drawing = replace(task, train=replace(task.train, augment=noisy), loss=loss)
    optimizer = partial(SGLD, lr=0.1) if where == "optimizer" else None
    model = nn.Linear(6, 3).to(task.train.inputs.dtype)
    before = torch.get_rng_state()
    training = Training(batch_size=16, grad_accum_steps=16)
    assert uses_global_rng(model, drawing, training, optimizer) is (where != "nowhere")
    assert torch.equal(before, torch.get_rng_state())


def test_dropout_inside_composite_layers_of_torch_is_intercepted():
    inputs = torch.randn((4, 24), generator=torch.Generator().manual_seed(1))
    layer, before = SelfAttention().train(), torch.get_rng_state()
    results: list[Tensor] = []
    for seed in (9, 9, 10):
        with DropoutMode(multipliers_from(torch.Generator().manual_seed(seed))):
            results.append(layer(inputs))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_a_task_of_one_batch_can_be_checked():
    data = [(torch.ones(2, 6), torch.zeros(2, dtype=torch.long))]
    assert not uses_global_rng(nn.Sequential(nn.Linear(6, 2)), Task.of(data, data), Training(batch_size=4), None)


def test_other_random_numbers_are_seeded_by_step_so_that_a_resume_draws_the_same(task):
    class Drawing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(6, 3)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.out(inputs + torch.rand(6))

    def net() -> nn.Module:
        with isolated(Seed(1)):
            return Drawing()

    training, kept = Training(epochs=2, swa_fraction=0, batch_size=16, swa=False), []
    whole = fit(net(), task, training, Seed(0)).weights["out.weight"]
    fit(net(), task, training, Seed(0), last=5, on_step=lambda step, total, snapshot: kept.append(snapshot()))
    assert torch.equal(fit(net(), task, training, Seed(0), resume=kept[-1]).weights["out.weight"], whole)
