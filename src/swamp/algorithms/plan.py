"""Plan: what a pruning run does, apart from how each particle is trained."""

from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from swamp.algorithms.method import Method
from swamp.algorithms.registry import method_named
from swamp.errors import SwampError, unknown
from swamp.fields import check_fields, html_table, short_repr
from swamp.masks import (
    MAX_CYCLES,
    NMPattern,
    Schedule,
    Scope,
    densities_by_fraction,
    densities_to,
    particles_for,
    structure_named,
)
from swamp.scores import score_named
from swamp.training import Dynamic, Retraining

OnDivergence = Literal["stop", "restart", "drop"]


@dataclass(frozen=True)
class Plan:
    """What a pruning run does, cycle by cycle."""

    method: str = "swamp"
    """See `swamp list methods`."""
    sparsity: float = 0.95
    """Share of the prunable weights that the last cycle has removed (a structure n:m has its own: 1 - n/m)."""
    particles: tuple[int, ...] = (4,)
    """Particles N a cycle; several numbers are taken cycle by cycle, the last one repeats."""
    cycles: int = 0
    """Prunings on the way (0: as many as `prune_fraction` needs, and one where each sparsity stands alone)."""
    prune_fraction: tuple[float, ...] = (0.2,)
    """Largest share of the survivors that one pruning removes; several numbers are taken pruning by pruning."""
    densities: tuple[float, ...] = ()
    """Densities to visit instead, e.g. 1 0.5 0.1 (overrides sparsity, cycles and prune_fraction)."""
    ticket_epochs: float = 1.0
    """Epochs of dense training before the ticket is taken; it must be stable, see the barrier in the record."""
    seed: int = 0
    """The one seed of everything: initial weights, split, batch orders, augmentation, dropout."""
    score: str = ""
    """How weights are ranked (default: as the method does, by magnitude most often). See `swamp list scores`."""
    score_examples: int = 1000
    """Training examples that a score looks at, at most, where it looks at any."""
    allocation: str = ""
    """How many weights each layer keeps: global, uniform or erk (default: as the method does, global most often)."""
    structure: str = "unstructured"
    """In which pattern weights go: unstructured; n:m such as 2:4, 1:4 or 4:8 (n of every m inputs live); or channel
    (whole output channels). See `swamp list structures`."""
    min_per_layer: int = 0
    """Weights that every layer keeps at least."""
    include: tuple[str, ...] = ()
    """Patterns of parameter names to prune instead of all linear and convolutional weights."""
    exclude: tuple[str, ...] = ()
    """Patterns of parameter names to leave dense."""
    prune_output_layer: Literal["auto", "yes", "no"] = "auto"
    """Whether the output layer is pruned: auto leaves the new head of a pretrained language model dense, no other."""
    retrain: str = ""
    """Learning rates where pruned weights train on: slr, lrw, ft, clr, llr or allr (default: as the method does)."""
    retrain_epochs: int = 0
    """Epochs for which pruned weights train on (0: as many as the dense network trained)."""
    dynamic: Dynamic = field(default_factory=Dynamic)
    on_divergence: OnDivergence = "restart"
    """A particle whose loss or weights are not finite: stop ends the run; restart trains it again from the ticket with
    half the learning rate, up to three times; drop leaves it out of the mean. The record says so in any case."""
    barrier_points: int = 9
    """Points between two particles at which the error barrier is measured each cycle (0: not measured)."""
    barrier_threshold: float = 0.02
    """Error barrier above which averaging is warned of; 0.02 is 2 points (Frankle 2020)."""
    evaluation_examples: int = 10_000
    """Examples that training metrics and barriers are measured on, at most."""

    def __post_init__(self) -> None:
        check_fields(self)
        score_named(self.ranking)
        if self.retrain and self.retrain not in get_args(Retraining):
            raise unknown("retrain", self.retrain, get_args(Retraining))
        if (self.retrain or self.retrain_epochs) and self.setting.start != "carry":
            raise SwampError(
                f"{self.method} rewinds its weights, and trains them as before: retrain and retrain_epochs are of "
                "methods whose pruned weights train on, such as lrr, sms and one-shot. Leave them out, or take one."
            )
        if self.on_divergence not in get_args(OnDivergence):
            raise unknown("on_divergence", str(self.on_divergence), get_args(OnDivergence))
        structure_named(self.structure).check_allocation(self.allotment)
        wrong = [
            (not 0 <= self.cycles <= MAX_CYCLES, "cycles", f"0 or more, and {MAX_CYCLES} at most"),
            (not 0 <= self.ticket_epochs <= 1e9, "ticket_epochs", "0 or more, and a billion at most"),
            (self.min_per_layer < 0, "min_per_layer", "0 or more"),
            (self.score_examples < 1, "score_examples", "1 or more"),
            (self.retrain_epochs < 0, "retrain_epochs", "0 or more"),
            (self.barrier_points < 0, "barrier_points", "0 or more"),
            (self.barrier_threshold < 0, "barrier_threshold", "0 or more"),
            (self.evaluation_examples < 1, "evaluation_examples", "1 or more"),
        ]
        for bad, name, expected in wrong:
            if bad:
                raise SwampError(f"{name} must be {expected}, got {getattr(self, name)}.")
        self.schedule()

    def __repr__(self) -> str:
        return short_repr(self)

    def _repr_html_(self) -> str:
        return html_table(self)

    @property
    def setting(self) -> Method:
        """The method that `method` names."""
        return method_named(self.method)

    @property
    def ranking(self) -> str:
        """The score that ranks weights."""
        return self.score or self.setting.score

    @property
    def allotment(self) -> str:
        """The allocation: how many weights each layer keeps. An N:M pattern keeps the same share of all."""
        by_method = "uniform" if isinstance(structure_named(self.structure), NMPattern) else self.setting.allocation
        return self.allocation or by_method

    @property
    def retraining(self) -> Retraining:
        """Learning rates where pruned weights train on."""
        return cast(Retraining, self.retrain) if self.retrain else self.setting.retrain

    @property
    def scope(self) -> Scope:
        """The parameters that may be pruned. Whole channels of the output layer are classes, so that it stays dense."""
        may = {"auto": None, "yes": True, "no": False}[self.prune_output_layer]
        return Scope(self.include, self.exclude, prune_output_layer=may if self.structure != "channel" else False)

    @property
    def most_particles(self) -> int:
        """The largest number of particles in any cycle: N."""
        return max(self.particles)

    def schedule(self) -> Schedule:
        """Densities and particle counts, cycle by cycle. Raises SwampError for what cannot be."""
        densities = self._densities()
        counts = particles_for(densities, self.particles, single_above=self.setting.single_above)
        return Schedule(densities, counts if self.setting.many else (1,) * len(densities))

    def trainings_to(self, density: float) -> int:
        """Trainings, the dense one included, of an iterative run with the first `prune_fraction` to this density."""
        return len(densities_to(1 - density, prune_fraction=self.prune_fraction[:1]))

    def _densities(self) -> tuple[float, ...]:
        if self.densities and self.densities[0] != 1 and not self.setting.alone:
            raise SwampError(
                f"densities start at 1, the dense cycle 0 that {self.method} needs, got {list(self.densities)}."
            )
        # Who needs no other sparsity on the way goes there at once; for the whole curve one names the densities.
        alone, at_once = self.setting.alone and not self.cycles, self.setting.masks != "iterative"
        cycles = self.cycles or int(at_once)
        structure = structure_named(self.structure)
        if isinstance(structure, NMPattern):
            # Sparsity and prune_fraction always have a value: a recipe's must not stand in the way of a pattern.
            found = structure.densities(self.densities, cycles)
            return found[-1:] if alone and not self.densities else found
        if self.densities:
            return self.densities
        if at_once and not self.cycles:
            return densities_to(self.sparsity, cycles=1)[-1 if alone else 0 :]
        if self.cycles and len(self.prune_fraction) > 1:
            reached = densities_by_fraction(self.prune_fraction, self.cycles)
            if abs(reached[-1] - (1 - self.sparsity)) > 1e-6:
                raise SwampError(
                    f"{self.cycles} prunings of {list(self.prune_fraction)} end at sparsity {1 - reached[-1]:.4f}, not "
                    f"at {self.sparsity:g}. Omit cycles, prune_fraction or sparsity: each follows from the other two."
                )
            return reached
        return densities_to(self.sparsity, cycles=self.cycles or None, prune_fraction=self.prune_fraction)
