"""Methods as settings of the one loop (method.md, section 1)."""

from dataclasses import dataclass, replace
from typing import Literal

from swamp.errors import SwampError
from swamp.training import Retraining, Sharpness, Training

RADII: dict[Sharpness, float] = {"sam": 0.05, "asam": 0.5, "s2-sam": 0.05}
"""Radius of each kind where the user gives none: those of Foret et al. 2021 and of the code of Kwon et al. 2021."""


@dataclass(frozen=True)
class Method:
    """What tells one method from another."""

    summary: str
    masks: Literal["iterative", "once", "initial", "dynamic"] = "iterative"
    """Where the mask of a cycle comes from: the cycle before it; the dense cycle, in one shot; the initial weights,
    before any training; or a training in which it changes. The last two stand alone at each sparsity."""
    score: str = "magnitude"
    """How weights are ranked, unless the plan says otherwise."""
    rounds: int = 1
    """Steps of falling density, ranked anew after each, in which one pruning is done."""
    allocation: str = "global"
    """How many weights each layer keeps, unless the plan says otherwise."""
    grow: Literal["nothing", "random", "gradient"] = "nothing"
    """What comes in place of what a changing mask drops: nothing (its density falls), random weights, or those with
    the largest gradients."""
    own_masks: bool = False
    """Each particle's mask changes by itself; the mean is pruned to the budget again."""
    many: bool = False
    """Trains the plan's N particles a cycle; otherwise one."""
    tail: bool = False
    """The last part of training runs at a constant rate."""
    swa: bool = False
    """Each particle is its own running mean over the tail."""
    cyclic_tail: bool = False
    """The tail is made of cycles of the learning rate (one an epoch unless the training says otherwise), with another
    mask in each, whose ends are averaged (Sup-tickets)."""
    combine: Literal["mean", "greedy", "best"] = "mean"
    """What stands for the cycle: the mean of its particles, the mean of those that a greedy choice on validation data
    takes, or the one with the least validation error."""
    start: Literal["ticket", "carry"] = "ticket"
    """Where the next cycle starts: at the ticket, or at the weights that were pruned."""
    retrain: Retraining = "slr"
    """Learning rates of a cycle whose weights were carried over, unless the plan says otherwise."""
    sharpness: Sharpness | None = None
    """Steps are sharpness-aware, of this kind."""
    ema: float = 0.0
    """Decay of the moving average that each particle is, where the user gives none."""
    longer: bool = False
    """Trains N times the epochs, as much as N particles cost."""
    cyclic: bool = False
    """Trains as many schedules, one after the other, as an iterative run would have had cycles to that density."""
    single_above: float = 0.0
    """Cycles denser than this train one particle only."""
    ensemble: bool = False
    """N whole runs side by side, each with its own mask; their predicted probabilities are averaged."""
    pools: bool = False
    """An IMP run whose models are then interpolated with their neighbours."""

    @property
    def alone(self) -> bool:
        """Whether the model of a sparsity needs that of no other."""
        return self.masks in ("initial", "dynamic")

    @property
    def rewinds(self) -> bool:
        """Whether every cycle trains one network's mask from the ticket, however that mask was found."""
        return self.start == "ticket" and not (self.alone or self.ensemble or self.pools)

    @property
    def in_step(self) -> bool:
        """Whether runs of several seeds gain by going through their cycles together: particles of a changing mask are
        trained a part at a time, those of one run after those of the other; an ensemble's are together already."""
        return not (self.ensemble or self.pools or self.masks == "dynamic")

    @property
    def needs_validation(self) -> bool:
        """Whether it chooses on validation data."""
        return self.combine != "mean" or self.pools

    def training(self, training: Training, particles: int) -> Training:
        """The user's training with this method's settings. Raises SwampError for averaging without a tail."""
        if self.swa and training.swa and not training.swa_epochs:
            raise SwampError(
                "this method averages weights over the last part of each training, and swa_fraction="
                f"{training.swa_fraction:g} leaves none. Give one (--swa-fraction 0.25), switch it off (--no-swa), "
                "or take a method without it: swamp-no-swa, imp."
            )
        return replace(
            training,
            epochs=training.epochs * (particles if self.longer else 1),
            swa_fraction=training.swa_fraction if self.tail else 0.0,
            swa_cycles=training.swa_cycles or (training.swa_epochs if self.cyclic_tail else 0),
            swa=self.swa and training.swa,
            ema=training.ema or self.ema,
            sam=training.sam or (RADII[self.sharpness] if self.sharpness else 0.0),
            sharpness=self.sharpness or training.sharpness,
        )
