"""The methods by name: each is a setting of the one loop."""

from typing import Any

from swamp.algorithms.method import Method
from swamp.errors import unknown

_SWA: dict[str, Any] = {"constant_final_lr": True, "swa": True}
_PARTICLES: dict[str, Any] = {"multi_particle": True, **_SWA}
# The fraction of a training that particles train apart is the usual length of SWA's tail.
_LATE: dict[str, Any] = {"branch": 0.25, "equal_cost": True}
_ONCE: dict[str, Any] = {"masks": "once", "start": "pruned"}
_RANDOM_ERK: dict[str, Any] = {"score": "random", "allocation": "erk"}
_SET: dict[str, Any] = {"masks": "dynamic", "grow": "random", **_RANDOM_ERK}
_RIGL: dict[str, Any] = {"masks": "dynamic", "grow": "gradient", **_RANDOM_ERK}

_SWAMP = {
    "swamp": Method("mean of N particles, each averaged over the end of its training (SWAMP)", **_PARTICLES),
    "swamp+": Method(
        "SWAMP with one particle while more than half of the weights remain", single_particle_above=0.5, **_PARTICLES
    ),
    "swamp-late": Method(
        "SWAMP whose particles share the first part of each training, at the cost of SWAMP", **_LATE, **_PARTICLES
    ),
    "swamp-late-no-swa": Method(
        "swamp-late with a decay to 0 and no averaging over steps", multi_particle=True, **_LATE
    ),
    "swamp-late-carry": Method("swamp-late whose mean continues, no rewinding", start="pruned", **_LATE, **_PARTICLES),
    "sms-late": Method(
        "sparse model soup whose particles share the first part of each training, at the cost of sms",
        multi_particle=True,
        start="pruned",
        **_LATE,
    ),
    "swamp-no-swa": Method("mean of the last iterates of N particles (SWAMP without SWA)", multi_particle=True),
    "swamp-greedy": Method(
        "SWAMP with a greedy soup: averages only particles that help on validation data", combine="greedy", **_PARTICLES
    ),
}

_ITERATIVE = {
    "imp": Method("iterative magnitude pruning with weight rewinding"),
    "imp-swa": Method("IMP with stochastic weight averaging: SWAMP with one particle", **_SWA),
    "imp-tail": Method(
        "IMP with SWAMP's constant learning rate at the end but no averaging: the control for it",
        constant_final_lr=True,
    ),
    "imp-ema": Method("IMP with an exponential moving average of the weights", ema=0.999),
    "imp-lawa": Method("IMP with the mean of the last epochs while the learning rate decays (LAWA)", lawa=6),
    "imp-sam": Method("IMP with sharpness-aware steps", sharpness="sam"),
    "imp-asam": Method("IMP with sharpness-aware steps scaled by the weights (ASAM)", sharpness="asam"),
    "imp-s2sam": Method("IMP with sharpness-aware steps at the cost of plain ones (S2-SAM)", sharpness="s2-sam"),
    "imp-long": Method("IMP with N times the epochs: the equal-cost control", equal_cost=True),
    "imp-long-lawa": Method("imp-long with the mean of its last epochs (LAWA)", equal_cost=True, lawa=6),
    "imp-best": Method(
        "IMP that continues with the best of N particles, chosen on validation data",
        multi_particle=True,
        combine="best",
    ),
    "imp-ensemble": Method("N independent IMP runs, predictions averaged: N times the inference cost", ensemble=True),
    "lottery-pools": Method("IMP whose models are interpolated with their neighbours, on validation data", pools=True),
    "lrr": Method("learning-rate rewinding: weights continue, only the schedule restarts", start="pruned"),
    "lrr-swa": Method("lrr with stochastic weight averaging: sms-swa with one particle", start="pruned", **_SWA),
    "lrr-ema": Method("lrr with an exponential moving average of the weights", start="pruned", ema=0.999),
    "lrr-lawa": Method(
        "lrr with the mean of the last epochs while the learning rate decays (LAWA)", start="pruned", lawa=6
    ),
    "lrr-long": Method(
        "lrr with N times the epochs: the equal-cost control of what carries weights on",
        start="pruned",
        equal_cost=True,
    ),
    "lrr-long-lawa": Method(
        "lrr-long with the mean of its last epochs (LAWA)", start="pruned", equal_cost=True, lawa=6
    ),
    "sms": Method(
        "sparse model soup: the mean of N particles continues, no rewinding", multi_particle=True, start="pruned"
    ),
    "sms-swa": Method("sparse model soup of particles with stochastic weight averaging", start="pruned", **_PARTICLES),
    "sms-greedy": Method(
        "sparse model soup of the particles that help on validation data",
        multi_particle=True,
        start="pruned",
        combine="greedy",
    ),
}

_ONE_SHOT = {
    "one-shot": Method("dense training, one pruning by magnitude, fine-tuning", retrain="ft", **_ONCE),
    "one-shot-taylor": Method(
        "one pruning by first-order Taylor scores, fine-tuning", retrain="ft", score="taylor", **_ONCE
    ),
    "one-shot-fisher": Method(
        "one pruning by the diagonal Fisher information, fine-tuning", retrain="ft", score="fisher", **_ONCE
    ),
    "one-shot-lrr": Method("one pruning by magnitude, then the whole schedule again", **_ONCE),
    "one-shot-rewind": Method("one pruning by magnitude, rewound to the ticket", masks="once"),
    "soup": Method("one pruning, N copies retrained by the whole schedule, averaged", multi_particle=True, **_ONCE),
    "soup-greedy": Method(
        "one pruning, N copies retrained, a greedy soup of them on validation data",
        multi_particle=True,
        combine="greedy",
        **_ONCE,
    ),
}

_BEFORE_TRAINING = {
    "random": Method("random weights, layers by ERK: what any criterion must beat", masks="initial", **_RANDOM_ERK),
    "random-uniform": Method(
        "random weights, all layers at one density", masks="initial", score="random", allocation="uniform"
    ),
    # One ranking of all layers would empty the wide layers, whose initial weights are small.
    "magnitude-init": Method("the largest initial weights, layers by ERK", masks="initial", allocation="erk"),
    "snip": Method("connection sensitivity of the initial weights", masks="initial", score="snip"),
    "snip-iterative": Method("connection sensitivity in 100 rounds", masks="initial", score="snip", rounds=100),
    "grasp": Method("gradient flow of the initial weights", masks="initial", score="grasp"),
    "synflow": Method("synaptic flow in 100 rounds, without data", masks="initial", score="synflow", rounds=100),
    "cyclic": Method(
        "a random ERK mask, trained by as many schedules as an iterative run has cycles",
        masks="initial",
        cyclic=True,
        **_RANDOM_ERK,
    ),
    "cyclic-long": Method(
        "cyclic with N times the epochs: the cost of SWAMP, spent on a random mask",
        masks="initial",
        cyclic=True,
        equal_cost=True,
        **_RANDOM_ERK,
    ),
}

_WHILE_TRAINING = {
    "gmp": Method("gradual magnitude pruning along a cubic while training", masks="dynamic"),
    "acdc": Method("AC/DC: compressed and dense phases of one training in turn", masks="dynamic", grow="all"),
    "safe": Method(
        "SAFE: sharpness-aware training with a penalty that draws the weights to sparse ones",
        masks="dynamic",
        sharpness="sam",
        radius=0.1,
        penalty=1e-3,
    ),
    "set": Method("sparse evolutionary training: drop the smallest, grow at random", **_SET),
    "rigl": Method("RigL: drop the smallest, grow where the gradient is largest", **_RIGL),
    "set-swamp": Method("SET with N particles of one changing mask, averaged", **_SET, **_PARTICLES),
    "rigl-swamp": Method("RigL with N particles of one changing mask, averaged", **_RIGL, **_PARTICLES),
    "set-swamp-own": Method(
        "SET with N particles of a mask each, their mean pruned to the budget", own_masks=True, **_SET, **_PARTICLES
    ),
    "rigl-swamp-own": Method(
        "RigL with N particles of a mask each, their mean pruned to the budget", own_masks=True, **_RIGL, **_PARTICLES
    ),
    "sup-tickets": Method(
        "RigL with a cyclic learning rate at the end, a mask in each cycle, their mean pruned to the budget",
        cyclic_final_lr=True,
        **_RIGL,
        **_SWA,
    ),
}

METHODS: dict[str, Method] = {**_SWAMP, **_ITERATIVE, **_ONE_SHOT, **_BEFORE_TRAINING, **_WHILE_TRAINING}
"""Name -> method."""


def method_named(name: str) -> Method:
    """Look a method up by name. Raises SwampError with suggestions."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]
