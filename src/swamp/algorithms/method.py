"""Method: a setting of the one loop."""

from dataclasses import dataclass, replace
from typing import Literal

from swamp.errors import SwampError
from swamp.training import Training
from swamp.training.mask_updates import Dynamic
from swamp.training.options import Sharpness
from swamp.training.retrain import Retraining

RADII: dict[Sharpness, float] = {"sam": 0.05, "asam": 0.5, "s2-sam": 0.05}
"""Default radius of each kind of SAM, from Foret et al. 2021 and the code of Kwon et al. 2021."""


@dataclass(frozen=True)
class Method:
    """The settings by which methods differ."""

    summary: str
    masks: Literal["iterative", "once", "initial", "dynamic"] = "iterative"
    """Source of a cycle's mask: the previous cycle; the dense cycle, in one shot; the initial weights, before any
    training; or a training in which the mask changes. The last two need no other cycle."""
    score: str = "magnitude"
    """Score that ranks weights, unless the plan names another."""
    rounds: int = 1
    """Rounds of one pruning; weights are scored again before each."""
    allocation: str = "global"
    """How the remaining weights are divided among layers, unless the plan names another allocation."""
    grow: Literal["nothing", "random", "gradient", "all"] = "nothing"
    """What a changing mask grows in place of dropped weights: nothing (its density falls), random weights, the weights
    with the largest gradients, or all of them, in turn with prunings to the final density (AC/DC)."""
    own_masks: bool = False
    """Each particle has its own changing mask; the mean of their weights is pruned to the density of the cycle."""
    multi_particle: bool = False
    """Trains the plan's N particles per cycle; otherwise one."""
    constant_final_lr: bool = False
    """The last part of training (`swa_fraction`) has a constant learning rate."""
    swa: bool = False
    """Each particle is its running mean over the last part of training (SWA)."""
    cyclic_final_lr: bool = False
    """The last part of training has a cyclic learning rate (one cycle per epoch unless `swa_cycles` is set) and another
    mask in each cycle; the weights at the ends of the cycles are averaged (Sup-tickets, Yin et al. 2022)."""
    combine: Literal["mean", "greedy", "best"] = "mean"
    """The model of a cycle: the mean of its particles, a greedy soup of them chosen on validation data, or the particle
    with the lowest validation error."""
    start: Literal["ticket", "pruned"] = "ticket"
    """Weights at which the next cycle starts: the ticket, or the pruned weights of this cycle."""
    retrain: Retraining = "slr"
    """Learning rates of cycles that start at the pruned weights, unless the plan names others."""
    sharpness: Sharpness | None = None
    """Kind of sharpness-aware steps."""
    radius: float = 0.0
    """Default radius of these steps, if it is not that of RADII."""
    penalty: float = 0.0
    """Default weight of a penalty on the distance to sparse weights; the mask of a dynamic method is then that of the
    trained weights (SAFE, Lee et al. 2025)."""
    ema: float = 0.0
    """Default decay of the exponential moving average of each particle's weights."""
    lawa: int = 0
    """Default number of last epochs after which each particle's weights are averaged, while the learning rate decays
    (latest weight averaging, Kaddour 2022)."""
    branch: float = 1.0
    """Default fraction of each training that the particles train apart, after a trunk that they share (1: no trunk)."""
    equal_cost: bool = False
    """Trains for more epochs, so that the cost of a cycle equals that of the plan's N particles without a trunk: one
    particle for N times the epochs, particles with a trunk until trunk and branches cost as much."""
    cyclic: bool = False
    """Repeats the learning-rate schedule once for each cycle that an iterative run needs to reach this density."""
    single_particle_above: float = 0.0
    """Cycles above this density train one particle only."""
    ensemble: bool = False
    """N independent runs, each with its own mask; their predicted probabilities are averaged."""
    pools: bool = False
    """An IMP run; its models are interpolated with those of the cycles before and after (Lottery Pools)."""

    @property
    def independent(self) -> bool:
        """Whether a cycle needs no other cycle."""
        return self.masks in ("initial", "dynamic")

    def mask_changes(self, dynamic: Dynamic, training: Training, per_epoch: int) -> tuple[int, ...]:
        """The steps after which a dynamic mask, or the projection of SAFE, changes.

        Raises SwampError if the training is too short for a change.
        """
        if self.penalty:
            return dynamic.dual_steps(training, per_epoch)
        return (dynamic.phases if self.grow == "all" else dynamic.steps)(training, per_epoch)

    @property
    def rewinds(self) -> bool:
        """Whether each cycle prunes an earlier cycle and starts again at the ticket."""
        return self.start == "ticket" and not (self.independent or self.ensemble or self.pools)

    @property
    def needs_validation(self) -> bool:
        """Whether the method chooses on validation data."""
        return self.combine != "mean" or self.pools

    def training(self, training: Training, *, epochs: int = 0, schedule_repeats: int = 0) -> Training:
        """The user's training with this method's settings.

        Args:
            training: The user's options.
            epochs: Epochs in place of the user's (0: the user's).
            schedule_repeats: Repeats of the schedule in place of the user's (0: the user's).

        Raises:
            SwampError: The method averages by SWA, and `swa_fraction` is 0.
        """
        if self.swa and training.swa and not training.swa_epochs:
            raise SwampError(
                "this method averages weights over the last part of each training, and swa_fraction="
                f"{training.swa_fraction:g} leaves none. Give one (swa_fraction=0.25), switch it off (swa=False), "
                "or take a method without it: swamp-no-swa, imp."
            )
        return replace(
            training,
            epochs=epochs or training.epochs,
            schedule_repeats=schedule_repeats or training.schedule_repeats,
            swa_fraction=training.swa_fraction if self.constant_final_lr else 0.0,
            swa_cycles=training.swa_cycles or (training.swa_epochs if self.cyclic_final_lr else 0),
            swa=self.swa and training.swa,
            ema=0.0 if self.lawa else training.ema or self.ema,
            lawa=0 if self.ema else training.lawa or self.lawa,
            sam=training.sam or self.radius or (RADII[self.sharpness] if self.sharpness else 0.0),
            penalty=(training.penalty or self.penalty) if self.penalty else 0.0,
            sharpness=self.sharpness or training.sharpness,
        )
