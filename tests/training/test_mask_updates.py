"""Dynamic masks: golden tables on a few weights, the schedule of changes, and the dense gradient."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from swamp import SwampError
from swamp.masks import Mask
from swamp.training import Training
from swamp.training.loop import fit
from swamp.training.mask_updates import Dynamic, dense_gradients, density_at, drop_and_grow, prune_to_budget
from swamp.training.rng import Seed
from swamp.training.snapshot import Snapshot, masked_snapshot


def mask_of(*bits: int) -> Mask:
    return Mask({"w": torch.tensor(bits, dtype=torch.bool)})


def test_the_smallest_weights_are_dropped_and_the_largest_gradients_grown():
    weights = {"w": torch.tensor([0.9, -0.1, 0.5, -0.7, 0.0, 0.0, 0.0, 0.0])}
    growth = {"w": torch.tensor([9.0, 0.0, 9.0, 9.0, 0.2, 0.8, 0.1, 0.5])}
    # Half of four: -0.1 and 0.5 are dropped. Of the inactive weights then, 9.0 (the dropped 0.5) and 0.8 are grown.
    after = drop_and_grow(mask_of(1, 1, 1, 1, 0, 0, 0, 0), weights, growth, 0.5)
    assert after["w"].int().tolist() == [1, 0, 1, 1, 0, 1, 0, 0]


def test_ties_keep_the_earlier_weight_and_grow_the_earlier_one():
    weights = {"w": torch.tensor([0.5, 0.5, 0.5, 0.5, 0.0, 0.0])}
    growth = {"w": torch.tensor([0.0, 0.0, 0.0, 0.0, 0.0, 0.0])}
    after = drop_and_grow(mask_of(1, 1, 1, 1, 0, 0), weights, growth, 0.25)
    # The last of the equal weights is dropped; of equal gradients the earliest is grown, which is the same weight.
    assert after["w"].int().tolist() == [1, 1, 1, 1, 0, 0]


def test_a_layer_with_few_inactive_weights_drops_as_many_as_published_and_dropped_ones_return():
    weights, growth = {"w": torch.arange(1.0, 7.0)}, {"w": torch.tensor([3.0, 0.0, 9.0, 1.0, 0.0, 5.0])}
    # 0.8 of five weights: 1 to 4 are dropped and 5 stays. Two of the five inactive weights have the gradients 9 and 5.
    after = drop_and_grow(mask_of(1, 1, 1, 1, 1, 0), weights, growth, 0.8)
    assert after["w"].int().tolist() == [1, 0, 1, 1, 1, 1]
    # Every weight that a dense layer drops returns.
    assert drop_and_grow(mask_of(1, 1, 1, 1, 1, 1), weights, growth, 0.5)["w"].all()


@given(st.integers(0, 10_000), st.floats(0.01, 0.99), st.floats(0.05, 1.0))
def test_every_layer_drops_the_published_number_of_weights(seed, fraction, density):
    generator = torch.Generator().manual_seed(seed)
    active = torch.rand(60, generator=generator).argsort() < max(1, round(60 * density))
    weights, growth = torch.randn(60, generator=generator), torch.rand(60, generator=generator)
    after = drop_and_grow(Mask({"w": active}), {"w": weights}, {"w": growth}, fraction)["w"]
    # As in google-research/rigl: n_keep = n_ones - n_prune; the others compete for n_prune places by their gradients.
    count = int(active.sum())
    kept = torch.zeros_like(active)
    kept[weights.abs().masked_fill(~active, -1).argsort(descending=True)[: count - round(fraction * count)]] = True
    grown = growth.masked_fill(kept, -1).argsort(descending=True)[: round(fraction * count)]
    assert after[kept].all()
    assert after[grown].all()
    assert int(after.sum()) == count


def test_a_layer_without_growth_scores_keeps_its_mask():
    mask = Mask({"w": torch.tensor([True, False, True]), "v": torch.tensor([True, False, False])})
    weights = {name: torch.tensor([1.0, 0.0, 2.0]) for name in "wv"}
    after = drop_and_grow(mask, weights, {"v": torch.tensor([0.0, 1.0, 2.0])}, 0.9)
    assert after["w"].tolist() == [True, False, True]
    assert after["v"].tolist() == [False, False, True]


def test_a_layer_with_active_zeros_keeps_the_mask_of_its_budget():
    budget = Mask({"w": torch.tensor([False, True, True])})
    mask, _ = prune_to_budget({"w": torch.tensor([0.0, 0.0, 5.0])}, budget)
    assert mask == budget


@given(st.data(), st.floats(0.01, 0.99), st.sampled_from(["unstructured", "2:4", "channel"]))
def test_every_layer_keeps_its_number_of_active_weights(data, fraction, structure):
    seed = data.draw(st.integers(0, 10_000))
    generator = torch.Generator().manual_seed(seed)
    shape = (6, 8)
    scores = torch.rand(shape, generator=generator)
    if structure == "unstructured":
        alive = torch.rand(shape, generator=generator) < 0.4
        alive[0, 0] = True
    elif structure == "2:4":
        alive = torch.zeros(6, 2, 4, dtype=torch.bool)
        alive.scatter_(2, torch.rand(6, 2, 4, generator=generator).argsort(2)[..., :2], True)
        alive = alive.reshape(shape)
    else:
        alive = (torch.rand(6, 1, generator=generator) < 0.5).expand(shape).clone()
        alive[0] = True
    before = Mask({"w": alive, "v": alive.clone()})
    weights = {"w": torch.randn(shape, generator=generator), "v": torch.randn(shape, generator=generator)}
    after = drop_and_grow(before, weights, {"w": scores, "v": scores.flip(0)}, fraction, structure)
    assert after.nnz_by_layer == before.nnz_by_layer
    if structure == "2:4":
        assert all((part.sum(1) == 2).all() for part in after["w"].split(4, dim=1))
    if structure == "channel":
        assert all(bool(row.all()) or not bool(row.any()) for row in after["w"])


def test_a_mean_of_different_masks_is_pruned_to_the_budget_of_each_layer():
    weights = {"w": torch.tensor([0.5, 0.0, -0.9, 0.1]), "v": torch.tensor([3.0, 4.0]), "b": torch.tensor([7.0])}
    budget = Mask({"w": torch.tensor([True, True, False, False]), "v": torch.tensor([True, False])})
    mask, state = prune_to_budget(weights, budget)
    assert {name: alive.int().tolist() for name, alive in mask.items()} == {"w": [1, 0, 1, 0], "v": [0, 1]}
    assert {name: value.tolist() for name, value in state.items()} == {
        "w": pytest.approx([0.5, 0, -0.9, 0]),
        "v": [0, 4],
        "b": [7],
    }


def test_the_replaced_fraction_decays_as_a_cosine():
    dynamic = Dynamic(update_interval=10, drop_fraction=0.3, dst_stop=0.75)
    assert dynamic.fraction_at(0, 300) == pytest.approx(0.3)
    assert dynamic.fraction_at(150, 300) == pytest.approx(0.15)
    assert dynamic.fraction_at(100, 300) == pytest.approx(0.15 * (1 + math.cos(math.pi / 3)))
    assert dynamic.fraction_at(300, 300) == pytest.approx(0)


def test_masks_change_every_interval_until_dst_stop_or_the_tail():
    training = Training(epochs=4, swa_fraction=0)
    assert Dynamic(update_interval=10, dst_stop=0.75).steps(training, 10) == (10, 20)
    assert Dynamic(update_interval=10, dst_stop=0.8).steps(training, 10) == (10, 20, 30)
    assert Dynamic(update_interval=10, dst_stop=0.75).steps(Training(epochs=4, swa_fraction=0.5), 10) == (10,)
    assert Dynamic(update_interval=10, dst_stop=1.0).end(Training(epochs=4, swa_fraction=0.5), 10) == 20


def test_gradual_pruning_follows_its_cubic():
    # Half-way from 1 to 0.2: 0.2 + 0.8 / 8.
    assert density_at(50, 100, 0.2) == pytest.approx(0.3)
    assert density_at(0, 100, 0.2) == 1
    assert density_at(100, 100, 0.2) == density_at(120, 100, 0.2) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"update_interval": 0}, "update_interval must be 1 or more, got 0"),
        ({"drop_fraction": 0.0}, r"drop_fraction must be in \(0, 1\), got 0"),
        ({"drop_fraction": 1.0}, r"drop_fraction must be in \(0, 1\)"),
        ({"dst_stop": 0.0}, r"dst_stop must be in \(0, 1\]"),
        ({"dst_stop": 1.1}, r"dst_stop must be in \(0, 1\]"),
    ],
)
def test_values_out_of_range_are_refused(options, message):
    with pytest.raises(SwampError, match=message):
        Dynamic(**options)


def test_a_training_too_short_for_any_change_is_refused():
    with pytest.raises(
        SwampError, match=r"is fixed from step 30 of 40, and the first change is after step 30.*update_interval"
    ):
        Dynamic(update_interval=30).steps(Training(epochs=4, swa_fraction=0), 10)


def test_the_dense_gradient_is_of_the_next_batch_and_changes_no_state(normed, task, generators):
    training = Training(batch_size=16)
    seed = Seed(3).at("particle", 0)
    normed.eval()
    before = {name: value.clone() for name, value in normed.state_dict().items()}
    state = generators()
    found = dense_gradients(normed, task, training, seed, 8)
    assert generators() == state
    assert all(torch.equal(value, before[name]) for name, value in normed.state_dict().items())
    assert all(parameter.grad is None for parameter in normed.parameters())
    # Step 8 of 6 an epoch: the third batch of the second one. Dropout would blur it, so it is compared without.
    normed[3] = nn.Identity()
    plain = dense_gradients(normed, task, training, seed, 8)
    normed.train()
    order = torch.randperm(96, generator=seed.at("order", 1).generator())[32:48]
    nn.functional.cross_entropy(normed(task.train.inputs[order]), task.train.targets[order]).backward()
    for name, parameter in normed.named_parameters():
        assert torch.allclose(plain[name], parameter.grad, atol=1e-7), name
    assert any(not torch.equal(found[name], plain[name]) for name in plain)


def test_the_dense_gradient_is_of_the_training_loss(mlp, task):
    seed, training = Seed(3).at("particle", 0), Training(batch_size=16, label_smoothing=0.2)
    found = dense_gradients(mlp, task, training, seed, 0)
    order = torch.randperm(96, generator=seed.at("order", 0).generator())[:16]
    loss = nn.functional.cross_entropy(mlp(task.train.inputs[order]), task.train.targets[order], label_smoothing=0.2)
    for (name, value), wanted in zip(found.items(), torch.autograd.grad(loss, list(mlp.parameters())), strict=True):
        assert torch.allclose(value, wanted, atol=1e-7), name


def test_a_masked_snapshot_has_zeros_in_weights_optimizer_mean_and_gradient():
    ones = torch.ones(2)
    state = {"w": ones, "b": ones, "seen": torch.tensor(3)}
    moments = {"0/step": torch.tensor(5.0), "0/exp_avg": ones, "1/exp_avg": ones, "group0/w": ones}
    snapshot = Snapshot(7, state, moments, state, 2, (0.5,), 1.5, 4, {"w": ones, "b": ones})
    cut = masked_snapshot(snapshot, Mask({"w": torch.tensor([True, False])}), ["b", "w"])
    for kept in (cut.weights, cut.mean, cut.gradient):
        assert {name: value.tolist() for name, value in kept.items() if name != "seen"} == {"w": [1, 0], "b": [1, 1]}
    assert {name: value.tolist() for name, value in cut.optimizer.items()} == {
        "0/step": 5,
        "0/exp_avg": [1, 1],
        "1/exp_avg": [1, 0],
        "group0/w": [1, 1],
    }
    assert (cut.step, cut.averaged, cut.losses, cut.running_loss, cut.losses_seen) == (7, 2, (0.5,), 1.5, 4)
    assert snapshot.weights["w"].tolist() == [1, 1]


def test_the_dense_gradient_equals_the_gradient_of_the_step_with_dropout(normed, task):
    plain = Training(batch_size=16, lr=0.5, momentum=0, weight_decay=0, schedule="constant", swa_fraction=0, swa=False)
    seed = Seed(3).at("particle", 0)
    normed.eval()
    found = dense_gradients(normed, task, plain, seed, 8)
    before = {name: parameter.detach().clone() for name, parameter in normed.named_parameters()}
    fit(normed, task, plain, seed, first=8, last=9)
    for name, parameter in normed.named_parameters():
        assert torch.allclose(found[name], (before[name] - parameter.detach()) / 0.5, atol=1e-6), name


def test_phases_of_acdc_are_those_of_the_paper():
    imagenet, cifar = Dynamic(), Dynamic(acdc_warmup=0.05, acdc_phase=0.1)
    # 100 epochs: compressed at 10, 20 ... 70 and dense again 5 epochs later; the last dense phase is one of 10 epochs.
    assert imagenet.phases(Training(epochs=100), 1) == (*range(10, 80, 5), 85)
    # 200 epochs: 20 compressed from 10, 50, 90 and 130, and the last 30.
    assert cifar.phases(Training(epochs=200), 7) == tuple(7 * epoch for epoch in (*range(10, 170, 20), 170))


@pytest.mark.parametrize(
    ("options", "epochs"),
    [({}, 5), ({"acdc_warmup": 0.8}, 100), ({"acdc_phase": 0.4}, 100), ({"acdc_final": 0.002}, 100)],
)
def test_a_training_without_a_compressed_phase_before_the_last_is_refused(options, epochs):
    with pytest.raises(SwampError, match="AC/DC has no compressed phase before the last one: of"):
        Dynamic(**options).phases(Training(epochs=epochs), 1)


@pytest.mark.parametrize("name", ["acdc_warmup", "acdc_phase", "acdc_final"])
def test_fractions_of_acdc_lie_between_0_and_1(name):
    for value in (0.0, 1.0):
        with pytest.raises(SwampError, match=rf"{name} must be in \(0, 1\), got {value}"):
            Dynamic(**{name: value})
