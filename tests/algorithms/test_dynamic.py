"""Masks that change while particles train: against hand-written RigL and AC/DC, step by step, on every backend."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.nn import functional as F

import swamp
from swamp.algorithms import METHODS
from swamp.backends import Sequential, Threads, Vmapped
from swamp.masks import Mask
from swamp.training import Seed, Task, Training
from swamp.training.mask_updates import Dynamic

from .conftest import PLAN, TRAINING, Spy, exact, run, same

CHANGING = [name for name, method in METHODS.items() if method.masks == "dynamic"]
INTERVAL, BATCH, EPOCHS, PER_EPOCH = 4, 16, 4, 6


def rigl_by_hand(model, task: Task, mask: dict, seed: Seed) -> tuple[dict, dict]:
    """RigL in plain PyTorch, sharing nothing with the library but the order of the examples."""
    parameters = dict(model.named_parameters())
    momentum = {name: torch.zeros_like(p) for name, p in parameters.items()}
    mask = {name: alive.double() for name, alive in mask.items()}
    total, end = EPOCHS * PER_EPOCH, round(0.75 * EPOCHS * PER_EPOCH)

    def batch(step):
        order = torch.randperm(96, generator=seed.at("order", step // PER_EPOCH).generator())
        part = order[step % PER_EPOCH * BATCH : (step % PER_EPOCH + 1) * BATCH]
        return F.cross_entropy(model(task.train.inputs[part]), task.train.targets[part])

    with torch.no_grad():
        for name in mask:
            parameters[name] *= mask[name]
    for step in range(total):
        gradients = dict(zip(parameters, torch.autograd.grad(batch(step), list(parameters.values())), strict=True))
        rate = 0.05 * (1 + torch.cos(torch.tensor(step / total * torch.pi, dtype=torch.float64)).item())
        with torch.no_grad():
            for name, p in parameters.items():
                own = mask.get(name, 1.0)
                momentum[name] = 0.9 * momentum[name] + gradients[name] * own + 5e-4 * p
                p -= rate * momentum[name] * own
        done = step + 1
        if done % INTERVAL == 0 and done < end:
            dense = dict(zip(parameters, torch.autograd.grad(batch(done), list(parameters.values())), strict=True))
            share = 0.15 * (1 + torch.cos(torch.tensor(done / end * torch.pi, dtype=torch.float64)).item())
            with torch.no_grad():
                for name, own in mask.items():
                    kept = int(own.sum())
                    count = round(share * kept)
                    size = parameters[name].abs().flatten().masked_fill(own.flatten() == 0, torch.inf)
                    new = own.flatten().clone()
                    new[size.argsort(stable=True)[:count]] = 0
                    open_places = dense[name].abs().flatten().masked_fill(new == 1, -1)
                    new[open_places.argsort(descending=True, stable=True)[:count]] = 1
                    mask[name] = new.view_as(own)
                    parameters[name] *= mask[name]
                    momentum[name] *= mask[name]
    return {name: p.detach().clone() for name, p in parameters.items()}, mask


def test_rigl_equals_a_hand_written_one(mlp, task):
    mlp, task = exact(mlp, task)
    start = {name: value.clone() for name, value in mlp.state_dict().items()}
    training = replace(TRAINING, weight_decay=5e-4, momentum=0.9)
    plan = replace(PLAN, method="rigl", sparsity=0.7, dynamic=Dynamic(update_interval=INTERVAL))
    spy = Spy(mlp, task)
    (cycle,) = swamp.cycles(mlp, task, plan, training, backend=spy)
    first = spy.calls[0][1]
    mlp.load_state_dict(start)
    weights, mask = rigl_by_hand(mlp, task, dict(first), Seed(0).at("cycle", 0, "particle", 0))
    assert cycle.mask != first
    assert all(torch.equal(alive, mask[name] == 1) for name, alive in cycle.mask.items())
    assert all(torch.allclose(cycle.weights[name], value, rtol=0, atol=1e-10) for name, value in weights.items())


def acdc_by_hand(
    model, task: Task, seed: Seed, nnz: int, compress: set[int], decompress: set[int]
) -> tuple[dict, dict]:
    """AC/DC in plain PyTorch, with torch's own SGD; phases begin after the given steps."""
    prunable = ["0.weight", "2.weight"]
    parameters = dict(model.named_parameters())
    mask = {name: torch.ones_like(parameters[name]) for name in prunable}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.8, momentum=0.9, weight_decay=5e-4)
    for step in range(EPOCHS * PER_EPOCH):
        if step in compress:
            size = torch.cat([parameters[name].detach().abs().flatten() for name in prunable])
            chosen = torch.zeros_like(size)
            chosen[size.argsort(descending=True, stable=True)[:nnz]] = 1
            parts = chosen.split([parameters[name].numel() for name in prunable])
            mask = {name: part.view_as(parameters[name]) for name, part in zip(prunable, parts, strict=True)}
        elif step in decompress:
            mask = {name: torch.ones_like(parameters[name]) for name in prunable}
            optimizer = torch.optim.SGD(model.parameters(), lr=0.8, momentum=0.9, weight_decay=5e-4)
        order = torch.randperm(96, generator=seed.at("order", step // PER_EPOCH).generator())
        part = order[step % PER_EPOCH * BATCH : (step % PER_EPOCH + 1) * BATCH]
        share = torch.tensor(step / (EPOCHS * PER_EPOCH) * torch.pi, dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = 0.4 * (1 + torch.cos(share).item())
        with torch.no_grad():
            for name, own in mask.items():
                parameters[name] *= own
        optimizer.zero_grad()
        F.cross_entropy(model(task.train.inputs[part]), task.train.targets[part]).backward()
        for name, own in mask.items():
            parameters[name].grad *= own
            if "momentum_buffer" in optimizer.state[parameters[name]]:
                optimizer.state[parameters[name]]["momentum_buffer"] *= own
        optimizer.step()
    return {name: p.detach() * mask.get(name, 1) for name, p in parameters.items()}, mask


ACDC = Dynamic(update_interval=INTERVAL, acdc_warmup=0.2, acdc_phase=0.125, acdc_final=0.25)
"""Of 24 steps: 5 dense, 3 compressed, 3 dense, 3 compressed, 4 dense, 6 compressed."""


def test_acdc_equals_a_hand_written_one(mlp, task):
    mlp, task = exact(mlp, task)
    start = {name: value.clone() for name, value in mlp.state_dict().items()}
    spy = Spy(mlp, task)
    (cycle,) = swamp.cycles(
        mlp, task, replace(PLAN, method="acdc", dynamic=ACDC, sparsity=0.5), replace(TRAINING, lr=0.8), backend=spy
    )
    mlp.load_state_dict(start)
    weights, mask = acdc_by_hand(mlp, task, Seed(0).at("cycle", 0, "particle", 0), 72, {5, 11, 18}, {8, 14})
    assert all(torch.equal(alive, mask[name] == 1) for name, alive in cycle.mask.items())
    assert all(torch.allclose(cycle.weights[name], value, rtol=0, atol=1e-10) for name, value in weights.items())
    masks = {request.last: mask for _, mask, *_, request in spy.calls}
    assert {step: mask.nnz for step, mask in masks.items()} == {
        **dict.fromkeys((4, 5, 11, 16, 18), 144),
        **dict.fromkeys((8, 12, 14, 20, 24), 72),
    }
    # Each compressed phase chooses its own weights.
    assert len({masks[step].digest for step in (8, 14, 24)}) > 1


def safe_by_hand(model, task: Task, seed: Seed, nnz: int, interval: int, penalty: float) -> dict:
    """Algorithm 1 of SAFE in plain PyTorch with torch's SGD: a radius of 0.1, a penalty that rises as a cosine."""
    prunable = ["0.weight", "2.weight"]
    parameters = dict(model.named_parameters())
    total = EPOCHS * PER_EPOCH
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)

    def project(weights: dict) -> dict:
        flat = torch.cat([weights[name].flatten() for name in prunable])
        kept = torch.zeros_like(flat)
        kept[flat.abs().argsort(descending=True, stable=True)[:nnz]] = 1
        parts = (flat * kept).split([weights[name].numel() for name in prunable])
        return {name: part.view_as(weights[name]) for name, part in zip(prunable, parts, strict=True)}

    def gradient(step: int) -> list[torch.Tensor]:
        order = torch.randperm(96, generator=seed.at("order", step // PER_EPOCH).generator())
        part = order[step % PER_EPOCH * BATCH : (step % PER_EPOCH + 1) * BATCH]
        loss = F.cross_entropy(model(task.train.inputs[part]), task.train.targets[part])
        return [*torch.autograd.grad(loss, list(parameters.values()))]

    z, u = {}, {name: torch.zeros_like(parameters[name]) for name in prunable}
    for step in range(total):
        if step % interval == 0:
            with torch.no_grad():
                z = project({name: parameters[name] + u[name] for name in prunable})
                u = {name: u[name] + parameters[name] - z[name] for name in prunable}
        found = gradient(step)
        norm = torch.cat([g.flatten() for g in found]).norm()
        before = {name: p.detach().clone() for name, p in parameters.items()}
        with torch.no_grad():
            for p, g in zip(parameters.values(), found, strict=True):
                p += 0.1 * g / norm
        found = gradient(step)
        rising = penalty * 0.5 * (1 - torch.cos(torch.tensor(step / total * torch.pi, dtype=torch.float64)).item())
        share = torch.tensor(step / total * torch.pi, dtype=torch.float64)
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + torch.cos(share).item())
        with torch.no_grad():
            for (name, p), g in zip(parameters.items(), found, strict=True):
                p.copy_(before[name])
                p.grad = g + rising * (p - z[name] + u[name]) if name in prunable else g
        optimizer.step()
    return {name: p.detach() for name, p in parameters.items()} | project({n: parameters[n].detach() for n in prunable})


def test_safe_equals_a_hand_written_one(mlp, task):
    mlp, task = exact(mlp, task)
    start = {name: value.clone() for name, value in mlp.state_dict().items()}
    # At 80 % the smaller initial weights of the second layer would all be projected to zero.
    plan = replace(PLAN, method="safe", sparsity=0.5, dynamic=Dynamic(update_interval=INTERVAL, dual_interval=5))
    spy = Spy(mlp, task)
    (cycle,) = swamp.cycles(mlp, task, plan, replace(TRAINING, penalty=0.3), backend=spy)
    (weaker,) = swamp.cycles(mlp, task, plan, TRAINING)
    mlp.load_state_dict(start)
    weights = safe_by_hand(mlp, task, Seed(0).at("cycle", 0, "particle", 0), 72, 5, 0.3)
    assert all(torch.allclose(cycle.weights[name], value, rtol=0, atol=1e-10) for name, value in weights.items())
    assert all(torch.equal(active, weights[name] != 0) for name, active in cycle.mask.items())
    assert {mask.nnz for _, mask, *_ in spy.calls} == {144}
    assert not same(cycle, weaker)
    # Every step has two passes of all weights.
    assert cycle.cost.flops == pytest.approx(24 * BATCH * 2 * 6 * 144)
    mlp.load_state_dict(start)
    weights = safe_by_hand(mlp, task, Seed(0).at("cycle", 0, "particle", 0), 72, 5, 1e-3)
    assert all(torch.allclose(weaker.weights[name], value, rtol=0, atol=1e-10) for name, value in weights.items())


def test_a_penalty_pays_for_the_scores_of_its_projections_and_new_statistics_are_estimated(normed, task):
    plan = replace(PLAN, method="safe", dynamic=Dynamic(update_interval=INTERVAL, dual_interval=5))
    (plain,) = swamp.cycles(normed, task, plan, TRAINING)
    (scored,) = swamp.cycles(normed, task, replace(plan, score="taylor", min_per_layer=1), TRAINING)
    # Before the first step, after 5, 10, 15 and 20 of 24, and at the end: all 96 examples each.
    assert scored.cost.flops == pytest.approx(plain.cost.flops + 6 * 96 * 6 * 144)
    assert plain.metrics_before_bn_update is not None
    assert plain.metrics_before_bn_update != plain.metrics.test


def test_acdc_counts_dense_and_sparse_phases(mlp, task):
    (cycle,) = run(mlp, task, "acdc", dynamic=ACDC)
    assert cycle.cost.steps == 24
    assert cycle.cost.flops == pytest.approx(BATCH * 6 * (12 * 144 + 12 * 29))


@pytest.mark.parametrize("method", ["set", "rigl", "set-swamp", "rigl-swamp", "set-swamp-own", "rigl-swamp-own"])
def test_every_layer_keeps_its_exact_density_after_every_change(normed, task, method):
    spy = Spy(normed, task)
    plan = replace(PLAN, method=method)
    (cycle,) = swamp.cycles(normed, task, plan, TRAINING, backend=spy)
    masks = [mask for _, mask, *_ in spy.calls]
    assert {tuple(mask.nnz_by_layer.items()) for mask in masks} == {tuple(masks[0].nnz_by_layer.items())}
    assert cycle.mask.nnz_by_layer == masks[0].nnz_by_layer
    assert len({mask.digest for mask in masks}) > 2


def test_particles_share_each_topology_or_each_has_its_own(normed, task):
    for method, own in (("rigl-swamp", False), ("rigl-swamp-own", True)):
        spy = Spy(normed, task)
        plan = replace(PLAN, method=method, dynamic=Dynamic(update_interval=4, drop_fraction=0.9))
        (cycle,) = swamp.cycles(normed, task, plan, TRAINING, backend=spy)
        together = [len(seeds) for _, _, _, seeds, _ in spy.calls]
        last = [mask.digest for _, mask, *_ in spy.calls[-3:]]
        if own:
            # A trunk of one epoch changes once; the particles part with its mask, and then change one by one.
            assert together == [1, 1, 3, *[1] * 12]
            assert len(set(last)) == 3
            assert len(cycle.particles) == 3
        else:
            assert together == [1, 1, *[3] * 5]
        assert cycle.cost.steps == 6 + 3 * 18


def test_grown_weights_start_at_zero_and_without_momentum(mlp, task):
    seen = []

    class Looking(Sequential):
        def train(self, request):
            seen.append((request.mask, request.progress.load_snapshot(0)))
            return super().train(request)

    list(swamp.cycles(mlp, task, replace(PLAN, method="rigl"), TRAINING, backend=Looking(mlp, task)))
    grown = 0
    for (before, _), (mask, snapshot) in pairwise(seen):
        for i, (name, alive) in enumerate(mask.items()):
            new = alive & ~before[name]
            grown += int(new.sum())
            assert not snapshot.weights[name][new].any()
            assert not snapshot.optimizer[f"{2 * i}/momentum_buffer"][new].any()
    assert grown > 5


def test_gradual_pruning_falls_along_its_cubic_and_ends_exactly(normed, task):
    spy = Spy(normed, task)
    plan = replace(PLAN, method="gmp", dynamic=Dynamic(update_interval=INTERVAL))
    (cycle,) = swamp.cycles(normed, task, plan, TRAINING, backend=spy)
    masks = [mask for _, mask, *_ in spy.calls]
    end = 18
    wanted = [144, *(round((0.2 + 0.8 * (1 - step / end) ** 3) * 144) for step in (4, 8, 12)), 29, 29]
    assert [mask.nnz for mask in masks] == wanted
    assert all(after.issubset(before) for before, after in pairwise(masks))
    assert cycle.mask.nnz == 29


@pytest.mark.parametrize("score", ["random", "snip", "taylor", "fisher", "grasp", "synflow"])
def test_gradual_pruning_ranks_by_the_given_score(mlp, task, score):
    plan = replace(PLAN, method="gmp", min_per_layer=1)
    spy = Spy(mlp, task)
    (cycle,) = swamp.cycles(mlp, task, replace(plan, score=score), TRAINING, backend=spy)
    (plain,) = swamp.cycles(mlp, task, plan, TRAINING)
    assert (cycle.mask.nnz, plain.mask.nnz) == (29, 29)
    assert cycle.mask != plain.mask
    masks = [mask for _, mask, *_ in spy.calls]
    assert all(after.issubset(before) for before, after in pairwise(masks))
    assert (cycle.cost.flops > plain.cost.flops) == (score != "random")


def test_a_cyclic_tail_averages_networks_of_unlike_masks(normed, task):
    spy = Spy(normed, task)
    training = replace(TRAINING, swa_cycles=2)
    (cycle,) = swamp.cycles(normed, task, replace(PLAN, method="sup-tickets"), training, backend=spy)
    # Changes after 4 and 8 steps, then the tail of steps 12 to 24: its first cycle, a change, its second.
    masks = {request.last: mask.digest for _, mask, *_, request in spy.calls}
    assert list(masks) == [4, 8, 12, 16, 18, 20, 24]
    assert masks[12] == masks[16] == masks[18] != masks[20] == masks[24]
    assert cycle.mask.nnz_by_layer == spy.calls[0][1].nnz_by_layer
    assert cycle.metrics_before_bn_update is not None


def short(method: str) -> Training:
    """Two epochs; sup-tickets averages over two cycles of the learning rate, an epoch each."""
    return replace(TRAINING, epochs=4 if method == "sup-tickets" else 2)


@pytest.mark.parametrize("method", CHANGING)
def test_backends_agree(normed, task, method):
    model, data = exact(normed, task)
    plan, training = replace(PLAN, method=method), short(method)
    plan = replace(plan, dynamic=Dynamic(update_interval=3, dst_stop=1.0), ticket_epochs=0.5)
    record = {
        kind: next(swamp.cycles(model, data, plan, training, backend=kind(model, data)))
        for kind in (Sequential, Threads)
    }
    assert same(*record.values())
    stacked = next(swamp.cycles(model, data, plan, training, backend=Vmapped(model, data, compiled=False)))
    assert stacked.mask == record[Sequential].mask
    for name, value in record[Sequential].weights.items():
        assert torch.allclose(stacked.weights[name], value, rtol=0, atol=1e-10), name


@pytest.mark.fast_cases(6)
@pytest.mark.parametrize("method", CHANGING)
@pytest.mark.parametrize("kind", [Sequential, Threads, Vmapped])
def test_a_frozen_layer_keeps_its_mask_and_its_weights_in_every_backend(mlp, task, method, kind):
    model, data = exact(mlp, task)
    model[0].weight.requires_grad_(False)
    model[0].weight.data[:, :2] = 0
    plan = replace(PLAN, method=method, dynamic=Dynamic(update_interval=3, dst_stop=1.0), ticket_epochs=0.5)
    options = {"compiled": False} if kind is Vmapped else {}
    masks = []

    class Looking(kind):
        def train(self, request):
            masks.append(request.mask)
            return super().train(request)

    training = short(method)
    (cycle,) = swamp.cycles(model, data, plan, training, backend=Looking(model, data, **options))
    assert cycle.mask.nnz == 29
    start = model.state_dict()["0.weight"]
    assert torch.equal(cycle.weights["0.weight"], start * cycle.mask["0.weight"])
    if METHODS[method].grow not in ("nothing", "all"):
        # Growth happens in the other layer alone, whose number of weights stays exact.
        assert {tuple(mask.nnz_by_layer.values()) for mask in masks} == {tuple(cycle.mask.nnz_by_layer.values())}
        assert all(torch.equal(mask["0.weight"], cycle.mask["0.weight"]) for mask in masks)
        assert len({mask.digest for mask in masks}) > 1
    reference = next(swamp.cycles(model, data, plan, training, backend=Sequential(model, data)))
    assert cycle.mask == reference.mask
    assert all(torch.allclose(cycle.weights[n], v, rtol=0, atol=1e-10) for n, v in reference.weights.items())


@pytest.mark.fast_cases(2)
@pytest.mark.parametrize("method", CHANGING)
def test_the_global_generator_is_not_touched_and_the_seed_decides(normed, task, method):
    state = torch.get_rng_state()
    training = short(method)
    one, two = run(normed, task, method, training), run(normed, task, method, training)
    assert torch.equal(state, torch.get_rng_state())
    assert same(one[0], two[0])
    assert not same(one[0], run(normed, task, method, training, seed=1)[0])


def test_a_training_too_short_for_a_change_is_refused_before_it_begins(mlp, task):
    plan = replace(PLAN, method="rigl", dynamic=Dynamic())
    with pytest.raises(swamp.SwampError, match="the mask would never change"):
        next(swamp.cycles(mlp, task, plan, Training(epochs=2, batch_size=16)))


def test_steps_along_the_last_gradient_keep_to_the_new_mask(mlp, task):
    training = replace(TRAINING, sharpness="s2-sam", sam=0.05)
    seen = []

    class Looking(Sequential):
        def train(self, request):
            seen.append((request.mask, request.progress.load_snapshot(0)))
            return super().train(request)

    list(swamp.cycles(mlp, task, replace(PLAN, method="set"), training, backend=Looking(mlp, task)))
    for mask, snapshot in seen[1:]:
        assert snapshot.gradient
        assert not any(snapshot.gradient[name][~alive].any() for name, alive in mask.items())


@pytest.mark.parametrize("method", [name for name in CHANGING if METHODS[name].grow not in ("nothing", "all")])
def test_a_mask_of_fixed_density_begins_at_random(mlp, task, method):
    class Asked(Exception):  # noqa: N818
        pass

    class NeverTrains:
        def train(self, request):
            raise Asked(request.mask)

    def first(**options) -> Mask:
        plan = replace(PLAN, method=method, **options)
        with pytest.raises(Asked) as asked:
            next(swamp.cycles(mlp, task, plan, TRAINING, backend=NeverTrains()))
        return asked.value.args[0]

    usual, by_magnitude = first(), first(score="magnitude")
    assert usual == first(score="random")
    # Shares of ERK are 6 + 16 and 16 + 3: 29 weights in 22 : 19.
    assert usual.nnz_by_layer == by_magnitude.nnz_by_layer == {"0.weight": 16, "2.weight": 13}
    assert usual != by_magnitude


@pytest.mark.parametrize("method", CHANGING)
def test_a_moving_average_continues_over_mask_updates_with_masked_zeros(mlp, task, method):
    plain, averaged = (run(mlp, task, method, replace(TRAINING, swa=False, ema=ema))[0] for ema in (0.0, 0.9))
    assert averaged.mask == plain.mask or method.endswith("own")
    averaged.mask.require_zeros(averaged.weights)
    assert not same(averaged, plain)


def test_the_ends_of_a_cyclic_tail_are_averaged_once(mlp, task):
    spy = Spy(mlp, task)
    next(swamp.cycles(mlp, task, replace(PLAN, method="sup-tickets"), replace(TRAINING, ema=0.9), backend=spy))
    assert {(training.swa, training.ema) for _, _, training, *_ in spy.calls} == {(False, 0.0)}


def test_particles_that_never_separate_are_refused(mlp, task):
    for method in ("set-swamp", "rigl-swamp-own"):
        spy = Spy(mlp, task)
        with pytest.raises(swamp.SwampError, match="taken after 4 epochs, the training has 4"):
            next(swamp.cycles(mlp, task, replace(PLAN, method=method, ticket_epochs=4), TRAINING, backend=spy))
        assert not spy.calls
    for method in ("rigl", "snip"):
        assert same(*(run(mlp, task, method, ticket_epochs=epochs)[0] for epochs in (1, 9)))
