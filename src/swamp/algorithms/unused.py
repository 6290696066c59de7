"""Options that a method does not use: refused, or named, where they are given."""

import math
from collections.abc import Iterable

from swamp.algorithms.plan import Plan
from swamp.errors import SwampError
from swamp.masks import NMPattern
from swamp.masks.patterns import structure_named
from swamp.training import Training

_SCORES_WITHOUT_DATA = ("magnitude", "random", "synflow")

_SHARED = (
    *("particles", "max_particles", "wave", "least_gain"),
    *("prune_fraction", "ticket_epochs", "barrier_points", "barrier_threshold", "score_examples"),
    *("swa_fraction", "swa_lr", "swa", "momentum"),
)
"""Options that comparisons give to all their methods alike."""

_FINDING_MASKS = (
    *("cycles", "densities", "prune_fraction", "score", "score_examples", "allocation", "structure", "min_per_layer"),
)
"""Options of pruning, which the training of a given mask does not use."""


def unused_options(plan: Plan, training: Training, *, given_mask: bool = False) -> dict[str, str]:
    """Options that a run of this plan and training does not use, whatever their values.

    Args:
        plan: What is pruned.
        training: How each particle is trained.
        given_mask: Whether a given mask is trained, so that nothing is pruned.

    Returns:
        Field of `Plan`, `Dynamic`, `Training` or `RunConfig` -> why, as the end of a sentence about the option.
    """
    method, name = plan.spec, plan.method
    dynamic = method.masks == "dynamic"
    trains_several = method.multi_particle or method.ensemble or method.equal_cost
    by_swa, instead = method.swa and training.swa, "averages by SWA; to use another average, switch swa off"
    averages = method.combine == "mean" and max(plan.schedule().particles) > 1
    # The particles of a dynamic method separate at the ticket's step, unless a branch says where.
    begins = not method.independent or (dynamic and max(plan.schedule().particles) > 1 and not plan.branch)
    no_final_lr = f"{name} decays the learning rate to 0, without a constant rate at the end"
    ticket = f"the particles of {name} do not start from a ticket"
    no_ticket = "branch sets where the particles separate" if dynamic and plan.branch else ticket
    alternates = method.grow == "all"
    no_growth = f"{name} grows {'all weights' if alternates else 'no weights'}"
    when = (
        f"the mask of {name} changes between its compressed and dense phases"
        if alternates
        else f"the mask of {name} is found after its last step"
        if method.penalty
        else f"the mask of {name} does not change while it trains"
    )
    at_intervals = dynamic and not alternates and not method.penalty
    no_penalty = f"{name} has no penalty that draws weights to sparse ones"
    no_barrier = f"{name} averages no particles that a barrier could separate"
    no_sharpness = f"{name} has its own" if method.sharpness else "sam, the radius, is 0"
    taken, asked = plan.transfer.source != "", plan.prune_output_layer == "yes"
    outputs_stay = "the channels of the output layer are the outputs, which stay"
    reached = math.isclose(plan.sparsity, 1 - plan.schedule().densities[-1])
    trains_alone = f"{name} trains one particle per cycle"
    reads_data = plan.score_name not in _SCORES_WITHOUT_DATA
    rows: list[tuple[bool, str, tuple[str, ...]]] = [
        (trains_several, trains_alone, ("particles",)),
        ("auto" in plan.particles, "particles is not auto", ("max_particles", "wave", "least_gain")),
        (max(plan.schedule().particles) > 1, trains_alone, ("branch",)),
        (*_prune_fraction(plan), ("prune_fraction",)),
        (taken or reached or not plan.densities, "the densities are given", ("sparsity",)),
        (taken or not plan.densities, "the densities are given", ("cycles",)),
        (taken or reached or not _by_pattern(plan), "the pattern sets the densities", ("sparsity",)),
        (not plan.include or not asked, "include names the parameters to prune", ("prune_output_layer",)),
        (plan.structure != "channel" or not asked, outputs_stay, ("prune_output_layer",)),
        (begins, no_ticket, ("ticket_epochs",)),
        (reads_data, f"the score {plan.score_name} uses no training data", ("score_examples",)),
        (method.start == "pruned", f"{name} rewinds its weights", ("retrain", "retrain_epochs")),
        (not method.independent, f"{name} trains from the start for each sparsity", ("last_epochs",)),
        (at_intervals, when, ("update_interval", "dst_stop")),
        (method.grow in ("random", "gradient"), no_growth, ("drop_fraction",)),
        (method.penalty > 0, no_penalty, ("dual_interval", "penalty")),
        (alternates, f"{name} has no compressed and dense phases", ("acdc_warmup", "acdc_phase", "acdc_final")),
        (averages, no_barrier, ("barrier_points", "barrier_threshold")),
        (not method.independent, ticket, ("lr_after_rewind",)),
        (not method.cyclic, f"{name} sets the number of repeats", ("schedule_repeats",)),
        (method.constant_final_lr, no_final_lr, ("swa_fraction", "swa_lr", "swa_cycles")),
        (training.swa_fraction > 0, "swa_fraction is 0, so that no constant rate ends the training", ("swa_lr",)),
        (method.swa, f"{name} does not average over the steps of a particle", ("swa",)),
        (not by_swa and not method.lawa, f"{name} {instead if by_swa else 'averages by LAWA'}", ("ema",)),
        (not by_swa and not method.ema, f"{name} {instead if by_swa else 'averages by EMA'}", ("lawa",)),
        (method.sharpness is None and training.sam > 0, no_sharpness, ("sharpness",)),
        (training.optimizer == "sgd", f"{training.optimizer} has no such option here", ("momentum", "nesterov")),
        (not dynamic, f"trajectories of {name}, whose mask changes, are not stored", ("trajectory_every",)),
    ]
    unused = {option: why for used, why, options in rows if not used for option in options}
    if taken:
        of_source = (*_FINDING_MASKS, "ticket_epochs", "lr_after_rewind")
        return unused | dict.fromkeys(of_source, "mask and initial weights are those of the source")
    if given_mask:
        unused |= dict.fromkeys(_FINDING_MASKS, "the mask is given")
    return unused | {"keep": "there is no source to keep it of"}


def _by_pattern(plan: Plan) -> bool:
    return isinstance(structure_named(plan.structure), NMPattern)


def _prune_fraction(plan: Plan) -> tuple[bool, str]:
    """Whether the densities follow from the prune fraction, and what they follow from otherwise."""
    if _by_pattern(plan):
        return False, "the pattern sets the densities"
    if plan.spec.cyclic and plan.schedule().densities[0] != 1:
        return True, ""  # it trains by as many schedules as an iterative run has cycles
    if plan.densities:
        return False, "the densities are given"
    if plan.cycles:
        return len(plan.prune_fraction) > 1, "the number of cycles and the sparsity set it"
    return plan.spec.masks == "iterative", f"{plan.method} prunes to each sparsity at once"


def refuse_unused(plan: Plan, training: Training, given: Iterable[str], *, given_mask: bool = False) -> list[str]:
    """Raise SwampError for the first of the `given` options (their fields) that the run would ignore.

    Options that a comparison of methods gives to all of them are allowed; one sentence is returned for each.

    given_mask: See `unused_options`.
    """
    unused = unused_options(plan, training, given_mask=given_mask)
    found = {option: f"{option} has no effect: {unused[option]}." for option in given if option in unused}
    for option, sentence in found.items():
        if option not in _SHARED:
            other = ", or choose another method (swamp list methods)" if plan.method in unused[option] else ""
            raise SwampError(f"{sentence} Leave it out{other}.")
    return list(found.values())
