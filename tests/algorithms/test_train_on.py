"""Masks that are handed in: the loop trains them as its own."""

from dataclasses import replace

import pytest
import torch

import swamp
from swamp.algorithms.loop import train_on

from .conftest import PLAN, TRAINING, Spy, Tickets, run, same


def ticket_of(mlp, task) -> swamp.Ticket:
    kept = Tickets()
    next(swamp.cycles(mlp, task, PLAN, TRAINING, store=kept))
    return kept.tickets[0]


def test_a_runs_own_masks_give_its_own_cycles_again(mlp, task):
    record = run(mlp, task, "swamp")
    masks = {cycle.index: cycle.mask for cycle in record[1:]}
    again = list(train_on(masks, ticket_of(mlp, task), mlp, task, PLAN, TRAINING))
    assert [cycle.index for cycle in again] == [1, 2, 3]
    for found, own in zip(again, record[1:], strict=True):
        assert same(found, own)
        assert found.metrics == own.metrics
        # What was spent to find the mask is no part of training it.
        assert found.total.steps == own.cost.steps


def test_another_runs_mask_is_kept_and_trained_from_the_ticket(mlp, task):
    imp, own = run(mlp, task, "imp"), run(mlp, task, "swamp")
    assert imp[2].mask != own[2].mask
    (found,) = train_on({2: imp[2].mask}, ticket_of(mlp, task), mlp, task, PLAN, TRAINING)
    assert found.mask == imp[2].mask
    assert len(found.particles) == 3
    assert not same(found, imp[2])


def test_what_cannot_be_trained_on_is_refused_before_training(mlp, task):
    ticket, mask = ticket_of(mlp, task), swamp.Mask.ones(mlp)
    for method in ("lrr", "snip"):
        with pytest.raises(swamp.SwampError, match="every cycle from one ticket"):
            train_on({1: mask}, ticket, mlp, task, swamp.Plan(method=method), TRAINING)
    with pytest.raises(swamp.SwampError, match="cycles 0 to 3, and a mask was given for 9"):
        train_on({9: mask}, ticket, mlp, task, PLAN, TRAINING)
    with pytest.raises(swamp.MaskError):
        train_on({1: swamp.Mask({"other": torch.ones(2, dtype=torch.bool)})}, ticket, mlp, task, PLAN, TRAINING)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"densities": (1, 0.5, 0.1)}, "densities has no effect: the mask is given"),
        ({"score": "snip"}, "score has no effect: the mask is given"),
        ({"training": replace(TRAINING, ema=0.9)}, "ema has no effect: swamp averages by SWA"),
    ],
)
def test_retrain_refuses_what_it_does_not_use(mlp, task, options, message):
    ticket, mask = swamp.Ticket(mlp.state_dict(), 0), swamp.Mask.ones(mlp)
    with pytest.raises(swamp.SwampError, match=message):
        swamp.retrain(mlp, task, ticket, mask, **{"training": TRAINING, **options})


def test_a_given_mask_may_have_fewer_weights_than_the_network_has_layers(mlp, task):
    one = {name: torch.zeros_like(value) for name, value in swamp.Mask.ones(mlp).items()}
    ticket = swamp.Ticket(mlp.state_dict(), 0)
    with pytest.raises(swamp.SwampError, match="the mask has no active weight"):
        swamp.retrain(mlp, task, ticket, swamp.Mask(one))
    one["0.weight"][0, 0] = True
    found = swamp.retrain(mlp, task, ticket, swamp.Mask(one), method="imp", training=TRAINING, backend="sequential")
    assert found.mask.nnz == 1


def test_retrain_trains_the_mask_of_all_zeros_of_a_model(mlp, task):
    sparse = swamp.prune(mlp, task, sparsity=0.5, method="imp", cycles=1, training=TRAINING, backend="sequential").model
    with torch.no_grad():
        sparse[0].bias[3] = 0
    mask, ticket = swamp.Mask.from_zeros(sparse), swamp.Ticket(mlp.state_dict(), 0)
    assert "0.bias" in mask
    how = {"method": "imp", "training": TRAINING, "backend": "sequential"}
    found = swamp.retrain(mlp, task, ticket, mask, **how)
    assert found.mask == mask
    assert found.model[0].bias[3] == 0
    one = swamp.Mask({"0.weight": mask["0.weight"]})
    assert swamp.retrain(mlp, task, ticket, one, **how).mask == one
    with pytest.raises(swamp.MaskError, match="names 'other', which Sequential does not have"):
        swamp.retrain(mlp, task, ticket, swamp.Mask({"other": mask["0.weight"]}), **how)


def test_a_given_ticket_may_be_later_than_the_end_of_a_training_that_restarts(mlp, task):
    mask, steps = run(mlp, task, "imp")[-1].mask, 5 * task.train.steps(TRAINING.batch_size)
    how = {"training": TRAINING, "method": "imp", "backend": "sequential"}
    early, late = (swamp.retrain(mlp, task, swamp.Ticket(mlp.state_dict(), at), mask, **how) for at in (0, steps))
    assert same(early.cycles[0], late.cycles[0])
    how["training"] = replace(TRAINING, lr_after_rewind="advance")
    with pytest.raises(swamp.SwampError, match="the ticket is taken after 5 epochs, the training has 4"):
        swamp.retrain(mlp, task, swamp.Ticket(mlp.state_dict(), steps), mask, **how)


def test_retraining_a_dense_mask_is_cycle_1_and_costs_no_ticket(mlp, task):
    ticket = ticket_of(mlp, task)
    sparse = {name: active.clone() for name, active in swamp.Mask.ones(mlp).items()}
    sparse["0.weight"][0, 0] = False
    how, spies = {"method": "imp", "training": TRAINING}, [Spy(mlp, task), Spy(mlp, task)]
    masks = swamp.Mask.ones(mlp), swamp.Mask(sparse)
    dense, other = (
        swamp.retrain(mlp, task, ticket, mask, backend=spy, **how).cycles[0]
        for mask, spy in zip(masks, spies, strict=True)
    )
    assert (dense.mask.density, dense.index, other.index) == (1, 1, 1)
    # The seeds determine the batch orders.
    assert [call[3] for call in spies[0].calls] == [call[3] for call in spies[1].calls]
    steps = TRAINING.epochs * task.train.steps(TRAINING.batch_size)
    assert [dense.cost.steps, dense.cost.sequential_steps, other.cost.steps] == [steps] * 3


def test_the_dense_mask_of_a_run_costs_no_ticket_that_it_did_not_train(mlp, task):
    (dense,) = train_on({0: swamp.Mask.ones(mlp)}, ticket_of(mlp, task), mlp, task, PLAN, TRAINING)
    assert dense.cost.steps == sum(particle.steps for particle in dense.particles)


def test_retrain_makes_a_sparse_model_of_any_mask(mlp, task):
    mask = run(mlp, task, "imp")[-1].mask
    before = {name: value.clone() for name, value in mlp.state_dict().items()}
    found = swamp.retrain(mlp, task, ticket_of(mlp, task), mask, particles=2, training=TRAINING, barrier_threshold=1)
    assert found.mask == mask
    assert len(found.cycles[0].particles) == 2
    mask.require_zeros(found.model.state_dict())
    assert all(torch.equal(before[name], value) for name, value in mlp.state_dict().items())
