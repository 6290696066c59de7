"""Setup: the objects that every cycle of a run uses, created and validated before the first training step."""

from torch import nn

from swamp.algorithms.divergence import DivergencePolicy
from swamp.algorithms.evaluator import Evaluator
from swamp.algorithms.next_mask import Pruner
from swamp.algorithms.plan import Plan
from swamp.algorithms.store import Store
from swamp.backends import Backend, Ticket
from swamp.errors import SwampError, shortened, warn
from swamp.masks import Mask
from swamp.masks.floor import least_weights
from swamp.masks.parametrized import slices_of
from swamp.masks.patterns import structure_named
from swamp.model_copy import copied_model
from swamp.scores import SCORES_OF_OUTPUTS
from swamp.training import Seed, Task, Training
from swamp.training.data import DatasetData, TensorData
from swamp.training.dry_run import dry_run
from swamp.training.flops import FlopCounter, examples_per_step
from swamp.training.memory_format import to_fastest_memory_format
from swamp.training.nan_checks import require_finite_start
from swamp.training.optimizers import use_dense_gradients
from swamp.training.retrain import WITHOUT_TAIL, retraining
from swamp.training.tokens import TokenData

_FEW_EXAMPLES = 10


class Setup:
    """One run, ready to start. Raises SwampError where the plan, the weights or the data make it impossible.

    given_ticket: Whether the ticket is given, perhaps of a longer training.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        plan: Plan,
        training: Training,
        backend: Backend,
        store: Store,
        *,
        given_ticket: bool = False,
    ) -> None:
        self.plan, self.schedule = plan, plan.schedule()
        self.backend, self.store = backend, store
        self.dense = Mask.ones(model, plan.scope)
        if empty := [name for name, parameter in model.named_parameters() if parameter.is_meta]:
            raise SwampError(
                f"{shortened(empty)} have no values: they are on the meta device. Give the model its weights first "
                "(model.to_empty and load_state_dict)."
            )
        if isinstance(task.train, TensorData | TokenData | DatasetData) and len(task.train) < _FEW_EXAMPLES:
            warn(f"the task has {len(task.train)} training examples: too few to learn from.")
        given = getattr(task.train, "loader_batch_size", None)
        if given not in (None, training.batch_size):
            warn(
                f"the DataLoader of the training data has batch_size={given}, which is not used: batches have "
                f"Training.batch_size={training.batch_size} examples."
            )
        if isinstance(task.loss, nn.Module) and any(one.requires_grad for one in task.loss.parameters()):
            warn(
                f"the loss {type(task.loss).__name__} has parameters that require a gradient, and they are not "
                "trained: only those of the model are. Make them parameters of the model, and compute the loss there "
                "or by Task.custom; or freeze them."
            )
        if message := plan.scope.warning(model):
            warn(message)
        self.slices = slices_of(model)
        """Slices of parametrised weights that need an active weight."""
        self._check_sparsity()
        self.model = copied_model(model)
        """Scratch model: its weights change."""
        use_dense_gradients(self.model)
        self.task = task.to(next(model.parameters()).device)
        if plan.score_name in SCORES_OF_OUTPUTS:
            self.task.require_outputs(f"the score {plan.score_name}")
        require_finite_start(self.model, self.task)
        self.has_unit_error = dry_run(self.model, self.task, training, prunable=set(self.dense))
        """Whether barriers, which are differences of errors, can be measured and judged."""
        to_fastest_memory_format(self.model, task.train, task.forward, bfloat16=False)
        self.divergence = DivergencePolicy(plan, store)
        self.evaluator = Evaluator(model, self.task, plan.evaluation_examples, training.precision, store.check_stop)
        self.flops = FlopCounter.of(model, self.task)
        self.initial = Ticket(model.state_dict(), 0)
        self.seed = Seed(plan.seed)
        self.pruner = Pruner(self.model, self.task, plan, training.batch_size, self.flops, self.slices)
        self.ticket_training = training.plain()
        self.options, self.training = training, self.plan.spec.training(training)
        self.per_epoch = task.train.steps(training.batch_size)
        self.batch = examples_per_step(task.train, training.batch_size)
        """Examples of one training step."""
        self.ticket_steps = plan.ticket_steps(self.per_epoch)
        self._check_epochs(training, given_ticket)

    def training_of(self, cycle: int) -> Training:
        """How the particles of this cycle are trained."""
        return self.plan.training(self.options, cycle)

    def retraining_of(self, cycle: int, change: float) -> tuple[Training, int]:
        """How carried weights are trained in this cycle, and the epoch of the schedule at which this starts.

        change: See `swamp.training.retrain.norm_change`.
        """
        epochs = self.plan.particle_epochs(cycle, self.options.epochs)
        return retraining(self.training_of(cycle), self.plan.retraining, epochs, change)

    def first_step(self, cycle: int) -> int:
        """Step at which the particles of this cycle start: the step of the ticket in a schedule of their length."""
        return self.plan.first_step(cycle, self.ticket_steps, self.options)

    def _check_sparsity(self) -> None:
        plan = self.plan
        last = self.schedule.nnz(len(self.schedule) - 1, self.dense.prunable)
        low = 1 if plan.min_per_layer is None else plan.min_per_layer
        least = max(1, least_weights(self.dense, low, self.slices))
        if last < least:
            needed = f", {least} together" if self.slices else ""
            raise SwampError(
                f"sparsity {1 - self.schedule.densities[-1]:g} would keep {last} of {self.dense.prunable} weights, "
                f"with at least {low} in each of {len(self.dense)} layers{needed}. Choose a lower sparsity."
            )
        structure_named(plan.structure).check(self.dense, last, plan.min_per_layer or 0)
        changing = self.plan.spec.masks == "dynamic" or self.plan.spec.own_masks
        if self.slices.keys() & self.dense and (changing or plan.structure == "channel"):
            what = "whole channels" if plan.structure == "channel" else f"masks that change, as {plan.method} has them,"
            raise SwampError(
                f"{next(name for name in self.dense if name in self.slices)!r} is parametrised, and a slice of it "
                f"without any weight would give NaN: {what} cannot keep one in each. Exclude it, or remove the "
                "parametrisation (torch.nn.utils.parametrize.remove_parametrizations)."
            )

    def _check_epochs(self, training: Training, given_ticket: bool) -> None:
        plan, method = self.plan, self.plan.spec
        if self.training.swa and plan.retraining in WITHOUT_TAIL:
            raise SwampError(
                f"{plan.method} averages weights over the last part of each training, and a retraining by "
                f"{plan.retraining} has no such part. Take retrain slr or lrw, switch the average off (swa=False), or "
                "take a method without it, such as lrr or sms."
            )
        # Cycles between these have the same number of particles, and train as long.
        count = len(self.schedule)
        for cycle in {*range(min(count, len(plan.particles) + 1)), count - 1}:
            self.training_of(cycle).require_average(self.per_epoch)
            if cycle and method.start == "pruned":
                self.retraining_of(cycle, 1.0)[0].require_average(self.per_epoch)
        # The particles of a dynamic method separate at the ticket's step; other one-cycle methods have no ticket.
        separates = method.masks == "dynamic" and max(self.schedule.particles) > 1
        advances = training.lr_after_rewind == "advance"
        inside = advances or not given_ticket
        shortest = min(training.epochs, plan.last_epochs or training.epochs) if advances else training.epochs
        latest = shortest * self.per_epoch - (separates or advances)
        if self.ticket_steps > latest and inside and (separates or not method.independent):
            raise SwampError(
                f"the ticket is taken after {plan.ticket_epochs:g} epochs, the training has {shortest}. "
                "Take it earlier or train longer."
            )
        if plan.retrain_epochs > training.epochs and plan.retraining == "lrw":
            raise SwampError(
                f"lrw trains the last {plan.retrain_epochs} epochs of {training.epochs} again; ask for fewer."
            )
        if method.masks == "dynamic":
            method.mask_changes(plan.dynamic, self.training, self.per_epoch)
