"""The methods by name."""

from swamp.algorithms.method import Method
from swamp.errors import unknown

_THE_METHOD = {
    "swamp": Method("mean of N particles, each averaged over its tail (SWAMP)", many=True, tail=True, swa=True),
    "swamp+": Method(
        "SWAMP with one particle while more than half of the weights live",
        many=True,
        tail=True,
        swa=True,
        single_above=0.5,
    ),
    "swamp-no-swa": Method("mean of the last iterates of N particles (SWAMP without SWA)", many=True),
    "swamp-greedy": Method(
        "SWAMP with a greedy soup: only particles that help on validation data are averaged",
        many=True,
        tail=True,
        swa=True,
        combine="greedy",
    ),
}

_ITERATIVE = {
    "imp": Method("iterative magnitude pruning with weight rewinding"),
    "imp-swa": Method("IMP with stochastic weight averaging: SWAMP with one particle", tail=True, swa=True),
    "imp-tail": Method("IMP with SWAMP's constant-rate tail but no averaging: the control for the tail", tail=True),
    "imp-ema": Method("IMP with an exponential moving average of the weights", ema=0.999),
    "imp-sam": Method("IMP with sharpness-aware steps", sharpness="sam"),
    "imp-asam": Method("IMP with sharpness-aware steps scaled by the weights (ASAM)", sharpness="asam"),
    "imp-s2sam": Method("IMP with sharpness-aware steps at the cost of plain ones (S2-SAM)", sharpness="s2-sam"),
    "imp-long": Method("IMP at N times the epochs: the equal-cost control", longer=True),
    "imp-best": Method(
        "IMP that goes on with the best of N particles, chosen on validation data", many=True, combine="best"
    ),
    "imp-ensemble": Method("N independent IMP runs, predictions averaged: N times the inference cost", ensemble=True),
    "lottery-pools": Method("IMP whose models are interpolated with their neighbours, on validation data", pools=True),
    "lrr": Method("learning-rate rewinding: weights carry on, only the schedule restarts", start="carry"),
    "sms": Method("sparse model soup: the mean of N particles carries on, no rewinding", many=True, start="carry"),
    "sms-greedy": Method(
        "sparse model soup of the particles that help on validation data", many=True, start="carry", combine="greedy"
    ),
}

_ONE_SHOT = {
    "one-shot": Method(
        "dense training, one pruning by magnitude, fine-tuning", masks="once", start="carry", retrain="ft"
    ),
    "one-shot-taylor": Method(
        "one pruning by first-order Taylor scores, fine-tuning",
        masks="once",
        start="carry",
        retrain="ft",
        score="taylor",
    ),
    "one-shot-fisher": Method(
        "one pruning by the diagonal Fisher information, fine-tuning",
        masks="once",
        start="carry",
        retrain="ft",
        score="fisher",
    ),
    "one-shot-lrr": Method("one pruning by magnitude, then the whole schedule again", masks="once", start="carry"),
    "one-shot-rewind": Method("one pruning by magnitude, rewound to the ticket", masks="once"),
    "soup": Method(
        "one pruning, N copies retrained by the whole schedule, averaged", masks="once", start="carry", many=True
    ),
    "soup-greedy": Method(
        "one pruning, N copies retrained, those averaged that help on validation data",
        masks="once",
        start="carry",
        many=True,
        combine="greedy",
    ),
}

_BEFORE_TRAINING = {
    "random": Method(
        "random weights, layers by ERK: what any criterion must beat", masks="initial", score="random", allocation="erk"
    ),
    "random-uniform": Method(
        "random weights, all layers at one density", masks="initial", score="random", allocation="uniform"
    ),
    # One ranking of all layers would empty those with small initial weights, which are the wide ones.
    "magnitude-init": Method("the largest initial weights, layers by ERK", masks="initial", allocation="erk"),
    "snip": Method("connection sensitivity of the initial weights", masks="initial", score="snip"),
    "snip-iterative": Method("connection sensitivity in 100 rounds", masks="initial", score="snip", rounds=100),
    "grasp": Method("gradient flow of the initial weights", masks="initial", score="grasp"),
    "synflow": Method("synaptic flow in 100 rounds, without data", masks="initial", score="synflow", rounds=100),
    "cyclic": Method(
        "a random ERK mask, trained by as many schedules as an iterative run has cycles",
        masks="initial",
        score="random",
        allocation="erk",
        cyclic=True,
    ),
    "cyclic-long": Method(
        "the same at N times the epochs: what SWAMP costs, spent on a random mask",
        masks="initial",
        score="random",
        allocation="erk",
        cyclic=True,
        longer=True,
    ),
}

_WHILE_TRAINING = {
    "gmp": Method("gradual magnitude pruning along a cubic while training", masks="dynamic"),
    "set": Method(
        "sparse evolutionary training: drop the smallest, grow at random",
        masks="dynamic",
        grow="random",
        score="random",
        allocation="erk",
    ),
    "rigl": Method(
        "RigL: drop the smallest, grow where the gradient is largest",
        masks="dynamic",
        grow="gradient",
        score="random",
        allocation="erk",
    ),
    "set-swamp": Method(
        "SET with N particles of one changing mask, averaged",
        masks="dynamic",
        grow="random",
        score="random",
        allocation="erk",
        many=True,
        tail=True,
        swa=True,
    ),
    "rigl-swamp": Method(
        "RigL with N particles of one changing mask, averaged",
        masks="dynamic",
        grow="gradient",
        score="random",
        allocation="erk",
        many=True,
        tail=True,
        swa=True,
    ),
    "set-swamp-own": Method(
        "SET with N particles of a mask each, their mean pruned to the budget",
        masks="dynamic",
        grow="random",
        score="random",
        allocation="erk",
        many=True,
        tail=True,
        swa=True,
        own_masks=True,
    ),
    "rigl-swamp-own": Method(
        "RigL with N particles of a mask each, their mean pruned to the budget",
        masks="dynamic",
        grow="gradient",
        score="random",
        allocation="erk",
        many=True,
        tail=True,
        swa=True,
        own_masks=True,
    ),
    "sup-tickets": Method(
        "RigL with a cyclic tail, a mask in each of its cycles, their mean pruned to the budget",
        masks="dynamic",
        grow="gradient",
        score="random",
        allocation="erk",
        tail=True,
        swa=True,
        cyclic_tail=True,
    ),
}

METHODS: dict[str, Method] = {**_THE_METHOD, **_ITERATIVE, **_ONE_SHOT, **_BEFORE_TRAINING, **_WHILE_TRAINING}


def method_named(name: str) -> Method:
    """Look a method up by name. Raises SwampError with suggestions."""
    if name not in METHODS:
        raise unknown("method", name, METHODS)
    return METHODS[name]
