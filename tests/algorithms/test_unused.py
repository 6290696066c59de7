"""No option is ignored in silence: a table of methods and options, checked by runs with and without each option."""

import random
import warnings
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from itertools import zip_longest

import pytest
import torch
from torch import nn

import swamp
from swamp.algorithms import METHODS
from swamp.algorithms.ensembles import ensemble
from swamp.algorithms.plan import Transfer
from swamp.algorithms.unused import refuse_unused, unused_options
from swamp.training import Seed, Training
from swamp.training.mask_updates import Dynamic
from swamp.training.rng import isolated

from .conftest import COVERING

PLAN = swamp.Plan(
    sparsity=0.8,
    prune_fraction=(0.8,),
    particles=(2,),
    ticket_epochs=1,
    min_per_layer=2,
    barrier_points=3,
    barrier_threshold=10.0,
    dynamic=Dynamic(update_interval=2),
)
TRAINING = Training(epochs=4, batch_size=32, lr=0.1, swa_fraction=0.5)
OF_PLAN = {
    "seed": 1,
    "sparsity": 0.7,
    "particles": (3,),
    "prune_fraction": (0.3,),
    "branch": 0.5,
    "cycles": 2,
    "densities": (1.0, 0.4, 0.15),
    "ticket_epochs": 2.0,
    "score": "synflow",
    "score_examples": 16,
    "allocation": "uniform",
    "structure": "channel",
    "min_per_layer": 14,
    "exclude": ("0.weight",),
    "include": ("0.weight",),
    "prune_output_layer": "no",
    "retrain": "llr",
    "retrain_epochs": 3,
    "last_epochs": 3,
    "barrier_points": 0,
    "evaluation_examples": 20,
}
OF_DYNAMIC = {"update_interval": 3, "drop_fraction": 0.8, "dst_stop": 0.4, "dual_interval": 5}
OF_DYNAMIC |= {"acdc_warmup": 0.3, "acdc_phase": 0.2, "acdc_final": 0.3}
OF_TRAINING = {
    "epochs": 6,
    "batch_size": 24,
    "grad_accum_steps": 4,
    "optimizer": "adamw",
    "lr": 0.05,
    "momentum": 0.5,
    "nesterov": True,
    "weight_decay": 0.1,
    "schedule": "step",
    "warmup": 1.0,
    "schedule_repeats": 2,
    "lr_after_rewind": "advance",
    "swa_fraction": 0.25,
    "swa_lr": 0.2,
    "swa_cycles": 1,
    "swa": False,
    "ema": 0.2,
    "lawa": 2,
    "sam": 0.3,
    "sharpness": "asam",
    "penalty": 0.5,
    "clip": 0.1,
    "label_smoothing": 0.3,
    "precision": "bfloat16",
    "reset_batchnorm": True,
}
LEFT_OUT = {
    "method": "it is the row of the table",
    "on_divergence": "it acts where a training diverges: test_divergence.py",
    "barrier_threshold": "it decides a warning: test_barrier.py",
    "dynamic": "its fields are options of their own",
    "transfer": "a method uses it or refuses it: tests/runs/test_transfer.py",
    "max_particles": "it acts with particles auto: test_waves.py",
    "wave": "it acts with particles auto: test_waves.py",
    "least_gain": "it acts with particles auto: test_waves.py",
}


def network() -> nn.Module:
    with isolated(Seed(7).at("init")):
        model = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    # As of a pretrained network: statistics that a reset would change.
    model[1].running_mean.fill_(0.3)
    return model


TABLE = {**OF_PLAN, **OF_DYNAMIC, **OF_TRAINING}


@cache
def users_of(option: str) -> list[str]:
    """Four methods that use an option."""
    using = [name for name in COVERING if option not in unused_options(replace(PLAN, method=name), TRAINING)]
    return random.Random(option).sample(using, min(4, len(using)))


def outcome(task, method: str, options: dict[str, object], training: Training = TRAINING) -> Iterator[str]:
    """What each cycle of a run computes, as text; or the refusal."""
    plan = replace(PLAN, method=method)
    of_plan, of_dynamic, of_training = (
        {name: value for name, value in options.items() if name in kind} for kind in (OF_PLAN, OF_DYNAMIC, OF_TRAINING)
    )
    try:
        plan = replace(plan, **of_plan, dynamic=replace(plan.dynamic, **of_dynamic))
        training = replace(training, **of_training)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if METHODS[method].ensemble:
                record = ensemble(lambda seed: network(), task, plan, training)
            else:
                record = swamp.cycles(network(), task, plan, training)
            for cycle in record:
                weights = {name: value.tolist() for name, value in cycle.weights.items()}
                stale = cycle.metrics_before_bn_update
                yield str((cycle.mask.digest, weights, cycle.metrics, stale, cycle.barrier, cycle.cost.steps))
    except swamp.SwampError as error:
        yield f"refused: {error}"


@pytest.mark.slow
@pytest.mark.usefixtures("few_rounds")
@pytest.mark.parametrize("method", COVERING)
def test_every_option_has_an_effect_or_is_among_the_unused(task, method):
    torch.manual_seed(0)
    usual = list(outcome(task, method, {}))
    assert not usual[0].startswith("refused")

    def difference(options: dict[str, object]) -> str:
        """The first cycle that is not as usual, or the refusal; "" for none. A run ends where it is not as usual."""
        pairs = zip_longest(outcome(task, method, options), usual)
        return next((str(found) for found, expected in pairs if found != expected), "")

    unused = unused_options(replace(PLAN, method=method), TRAINING)
    # All at once, as none may have an effect; one by one only to name the wrong ones.
    ignored = {option: TABLE[option] for option in unused if option in TABLE}
    for option in {"retrain", "retrain_epochs"} & ignored.keys():
        assert difference({option: ignored.pop(option)}).startswith("refused")
    for pair in (("ema", "lawa"), ("schedule_repeats", "swa_fraction")):
        if ignored.keys() >= set(pair):  # refused together: one of them, and the other with the next method
            del ignored[pair[COVERING.index(method) % 2]]
    wrong: list[tuple[str, str]] = []
    if difference(ignored):
        wrong = [(option, "is used") for option, value in ignored.items() if difference({option: value})]
        assert wrong, "some of the unused options have an effect together"
    own = METHODS[method]
    other = {"score": "magnitude"} if own.score == "synflow" else {}
    other |= {"allocation": "erk"} if own.allocation == "uniform" else {}
    used = {option: value for option, value in (TABLE | other).items() if method in users_of(option)}
    wrong += [(option, "is ignored") for option, value in used.items() if not difference({option: value})]
    assert not wrong


def test_every_field_of_plan_and_training_is_in_the_table():
    named = TABLE.keys() | LEFT_OUT.keys()
    assert {one.name for kind in (swamp.Plan, Dynamic, Training) for one in fields(kind)} == named


def test_a_given_option_that_the_method_ignores_is_refused_with_the_reason():
    for method, option, why in (
        ("gmp", "drop_fraction", "gmp grows no weights"),
        ("acdc", "drop_fraction", "acdc grows all weights"),
        ("acdc", "dst_stop", "the mask of acdc changes between its compressed and dense phases"),
        ("gmp", "acdc_phase", "gmp has no compressed and dense phases"),
        ("safe", "update_interval", "the mask of safe is found after its last step"),
        ("imp-sam", "penalty", "imp-sam has no penalty that draws weights to sparse ones"),
        ("imp", "update_interval", "the mask of imp does not change while it trains"),
        ("swamp", "ema", "swamp averages by SWA"),
        ("swamp", "lawa", "swamp averages by SWA"),
        ("imp-lawa", "ema", "imp-lawa averages by LAWA"),
        ("lrr-ema", "lawa", "lrr-ema averages by EMA"),
        ("imp-sam", "sharpness", "imp-sam has its own"),
        ("swamp", "retrain", "swamp rewinds its weights"),
        ("imp", "min_per_layer", "the mask is given"),
    ):
        with pytest.raises(swamp.SwampError, match=f"{option} has no effect: {why}"):
            refuse_unused(
                replace(PLAN, method=method), TRAINING, ["seed", option], given_mask=option == "min_per_layer"
            )
    assert refuse_unused(replace(PLAN, method="gmp", score="taylor"), TRAINING, ["score", "score_examples"]) == []


def test_options_that_methods_in_a_comparison_share_are_named():
    imp = refuse_unused(replace(PLAN, method="imp"), TRAINING, ["particles", "ticket_epochs", "swa_fraction"])
    assert imp == [
        "particles has no effect: imp trains one particle per cycle.",
        "swa_fraction has no effect: imp decays the learning rate to 0, without a constant rate at the end.",
    ]
    snip = refuse_unused(replace(PLAN, method="snip"), TRAINING, ["ticket_epochs"])
    assert snip == ["ticket_epochs has no effect: the particles of snip do not start from a ticket."]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"cycles": 3}, "the number of cycles and the sparsity set it"),
        ({"densities": (1, 0.5)}, "the densities are given"),
        ({"structure": "2:4"}, "the pattern sets the densities"),
        ({"method": "one-shot"}, "one-shot prunes to each sparsity at once"),
        ({"method": "cyclic", "cycles": 3}, "the number of cycles and the sparsity set it"),
        ({"method": "cyclic"}, None),
        ({"cycles": 2, "prune_fraction": (0.5, 0.6)}, None),
    ],
)
def test_the_prune_fraction_is_unused_where_the_densities_follow_from_something_else(options, why):
    plan = replace(PLAN, **options)
    assert unused_options(plan, TRAINING).get("prune_fraction") == why
    # No plan changes by an option that is unused.
    other = [replace(plan, prune_fraction=(fraction,)) for fraction in (0.1, 0.3)] if why else []
    assert len({(one.schedule(), one.training(TRAINING, 0).epochs) for one in other}) == bool(why)


@pytest.mark.parametrize(
    ("options", "unused"),
    [
        ({"densities": (1, 0.4)}, {"sparsity": "the densities are given", "cycles": "the densities are given"}),
        ({"structure": "2:4"}, {"sparsity": "the pattern sets the densities"}),
        ({"include": ("0*",), "prune_output_layer": "yes"}, {"prune_output_layer": "include names the parameters to"}),
        ({"transfer": Transfer("run")}, {}),
        ({}, {}),
    ],
)
def test_options_that_another_option_replaces_are_unused(options, unused):
    plan = replace(PLAN, **options)
    names = ("sparsity", "cycles", "prune_output_layer")
    found = {name: why for name, why in unused_options(plan, TRAINING).items() if name in names}
    found.pop("cycles", None) if "transfer" in options else None
    assert found.keys() == unused.keys()
    for name, why in unused.items():
        with pytest.raises(swamp.SwampError, match=rf"^{name} has no effect: {why}[^.]*\. Leave it out\.$"):
            refuse_unused(plan, TRAINING, [name])


def test_the_rate_of_a_tail_of_no_length_is_named():
    none = replace(TRAINING, swa_fraction=0.0, swa=False, swa_lr=0.2)
    assert refuse_unused(PLAN, none, ["swa_lr"]) == [
        "swa_lr has no effect: swa_fraction is 0, so that no constant rate ends the training."
    ]


def test_the_step_at_which_the_particles_of_a_dynamic_method_separate_is_set_by_one_option():
    together = replace(PLAN, method="rigl-swamp")
    assert "ticket_epochs" not in unused_options(together, TRAINING)
    apart = unused_options(replace(together, branch=0.5), TRAINING)
    assert apart["ticket_epochs"] == "branch sets where the particles separate"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"structure": "channel", "prune_output_layer": "yes"},
            "prune_output_layer has no effect: the channels of the output layer are the outputs, which stay",
        ),
        ({"method": "gmp", "dynamic": Dynamic(drop_fraction=0.1, update_interval=2)}, "drop_fraction has no effect"),
        ({"sparsity": 0.5, "densities": (1, 0.1)}, "sparsity has no effect: the densities are given"),
        ({"training": replace(TRAINING, ema=0.9)}, "ema has no effect: swamp averages by SWA"),
        ({"training": replace(TRAINING, sharpness="asam")}, "sharpness has no effect: sam, the radius, is 0"),
    ],
)
def test_a_call_is_refused_before_the_training(task, options, message):
    with pytest.raises(swamp.SwampError, match=message):
        swamp.prune(network(), task, **{"training": TRAINING, **options})


@pytest.mark.parametrize("particles", [3, 4])
def test_a_call_names_an_option_that_it_does_not_use(task, particles):
    with pytest.warns(UserWarning, match="particles has no effect: imp trains one particle"):
        swamp.prune(network(), task, method="imp", particles=particles, sparsity=0.5, cycles=1, training=TRAINING)
