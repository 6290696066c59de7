"""The tensors of N models in training, each with a leading dimension for the particle."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from swamp.backends.graphed import Graphed
from swamp.backends.sequential import Row
from swamp.backends.step import Step, Tensors
from swamp.backends.update import Formula, has_formula, moves_each_number_alone
from swamp.errors import Interrupted
from swamp.training import (
    Fit,
    RunningMean,
    Snapshot,
    State,
    build_optimizer,
    copied,
    gathered,
    require_finite,
    require_finite_memory,
    require_finite_weights,
    shuffled_together,
)
from swamp.training.snapshot import load_optimizer, optimizer_tensors

T = TypeVar("T")


class Stack:
    """Particles that stand at the same step, made from one snapshot each."""

    def __init__(
        self,
        step: Step,
        rows: Sequence[Row],
        snapshots: Sequence[Snapshot],
        *,
        compiled: bool,
        own_masks: bool = False,
    ) -> None:
        """rows: their jobs differ in ticket, mask and progress only. own_masks: else all have the first one's mask."""
        self.step, self.rows, self.job = step, rows, rows[0].job
        job, self.seeds = self.job, [row.seed for row in rows]
        self.noise = [seed.at("noise").number() for seed in self.seeds]
        self.scratch = copy.deepcopy(job.model)
        self.weights, self.others = self._stacked([snapshot.weights for snapshot in snapshots])
        self.masks = self._masks(own_masks)
        self.earlier = self._earlier([snapshot.gradient for snapshot in snapshots])
        # What the optimizers know as parameters: the stacked weights themselves, or each particle's slices of them.
        self.together, self.parameters = True, [[nn.Parameter(weight) for weight in self.weights.values()]]
        self.optimizers = self._optimizers([snapshot.optimizer for snapshot in snapshots])
        seen = [snapshot.running_loss for snapshot in snapshots]
        self.running_loss = torch.tensor(seen, dtype=torch.float64, device=step.device)
        # On a GPU the whole step is captured and replayed, compiled or not.
        on_gpu = step.device.type == "cuda"
        whole = (compiled or on_gpu) and self.together and has_formula(self.optimizers[0])
        self.formula = Formula(self.optimizers[0]) if whole else None
        self.whole = self._whole(compiled, on_gpu) if self.formula else None
        like = self.scratch.state_dict()
        decay = job.training.decay
        self.means = [RunningMean(copied(s.mean), s.averaged, like=like, decay=decay) for s in snapshots]
        self.losses = [list(snapshot.losses) for snapshot in snapshots]
        self.losses_seen = snapshots[0].losses_seen
        self.at = snapshots[0].step
        self.broken: set[int] = set()
        """Places of particles that go on with the others, as one step moves all, and count no more."""

    def run(self, until: int, last: int) -> None:
        """Go on to step `until`, of a training that ends at `last`."""
        task, training = self.job.task, self.job.training
        per_epoch = task.train.steps(training.batch_size)
        while self.at < until and len(self.broken) < len(self.seeds):
            epoch, within = divmod(self.at, per_epoch)
            end = min((epoch + 1) * per_epoch, last)
            device = self.step.device
            batches = shuffled_together(task.train, training.batch_size, self.seeds, epoch, within, device)
            for batch in islice(batches, min(end, until) - self.at):
                self.advance(training.rate(self.at, per_epoch), *batch)
                self.at += 1
                if self.at == end:
                    self.end_epoch(per_epoch)
                if training.samples_at(self.at, per_epoch):
                    for place in self.whole_places:
                        self.means[place].add(self.state(place))
                self.report(last)

    @property
    def whole_places(self) -> list[int]:
        """Places of the particles that did not break."""
        return [place for place in range(len(self.seeds)) if place not in self.broken]

    def advance(self, rate: float, inputs: Any, targets: Tensor) -> None:
        """One step of all particles."""
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        noise = self.step.draws(inputs, targets, [seed + self.at for seed in self.noise])
        if self.formula is not None and self.whole is not None:
            if self.step.device.type == "cuda":
                inputs = gathered(inputs)  # a graph copies what it is given
            self.whole(self.formula.next_numbers(), inputs, targets, noise)
        else:
            gradients, losses = self.step.moved(
                self.weights, self.others, self.masks, self.earlier, inputs, targets, noise
            )
            self._move(gradients)
            self.running_loss += losses
        self.losses_seen += 1

    def end_epoch(self, per_epoch: int) -> None:
        """Read the losses back; a particle whose loss is not a number broke."""
        training = self.job.training
        sums = self.running_loss.cpu()
        for place in self.whole_places:
            loss = float(sums[place]) / self.losses_seen
            self.losses[place].append(loss)
            weight = next(iter(self.weights.values()))
            self.unless_broken(place, partial(require_finite, loss, self.at, training, per_epoch, weight))
        self.running_loss.zero_()
        self.losses_seen = 0

    def unless_broken(self, place: int, work: Callable[[], T]) -> T | None:
        """What `work` gives of one particle; None where that shows that it broke, and the others go on."""

        def told() -> tuple[T]:
            return (work(),)

        row = self.rows[place]
        found = row.job.unless_broken(row.number, told)
        if found is None:
            self.broken.add(place)
        return found and found[0]

    def report(self, last: int) -> None:
        """Tell the progress of every particle, also when the first is told to stop: each saves itself."""
        stopped: Interrupted | None = None
        for place in self.whole_places:
            try:
                row = self.rows[place]
                row.job.progress.stepped(row.number, self.at, last, partial(self.snapshot, place))
            except Interrupted as error:
                stopped = error
        if stopped is not None:
            raise stopped

    def state(self, place: int) -> State:
        """The state dict of one particle (of a scratch model that the next call overwrites)."""
        with torch.no_grad():
            own = dict([*self.scratch.named_parameters(), *self.scratch.named_buffers()])
            values = [self._named(name)[place] for name in own]
            torch._foreach_copy_([*own.values()], values)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        return self.scratch.state_dict()

    def snapshot(self, place: int) -> Snapshot:
        """One particle, stopped here."""
        return Snapshot(
            self.at,
            copied(self.state(place)),
            self._memory(place),
            self.means[place].partial(),
            self.means[place].count,
            tuple(self.losses[place]),
            float(self.running_loss[place]),
            self.losses_seen,
            {name.removeprefix("model."): kept[place].clone() for name, kept in self.earlier.items()},
        )

    def trained(self, place: int, first: int) -> Fit:
        """What the training of one particle gave. Raises Diverged where a weight is not finite."""
        state = copied(self.state(place))
        weights = dict(self.scratch.named_parameters())
        require_finite_weights(weights, self.at, self.job.training)
        require_finite_memory(self._memory(place), [name for name, p in weights.items() if p.requires_grad], self.at)
        mean = self.means[place]
        return Fit(mean.mean() if mean.count else state, mean.count, self.at - first, tuple(self.losses[place]))

    def _named(self, name: str) -> Tensor:
        found = self.weights.get(f"model.{name}")
        return self.others[f"model.{name}"] if found is None else found

    def _stacked(self, states: Sequence[State]) -> tuple[Tensors, Tensors]:
        """Weights that train, and whatever else a model has, with the particles first."""
        columns: dict[str, list[Tensor]] = {}
        for state in states:
            self.scratch.load_state_dict(dict(state))
            for name, tensor in [*self.scratch.named_parameters(), *self.scratch.named_buffers()]:
                columns.setdefault(f"model.{name}", []).append(tensor.detach().clone())
        stacked = {name: torch.stack(column) for name, column in columns.items()}
        trained = {f"model.{name}" for name, p in self.scratch.named_parameters() if p.requires_grad}
        weights = {name: tensor for name, tensor in stacked.items() if name in trained}
        return weights, {name: tensor for name, tensor in stacked.items() if name not in trained}

    def _masks(self, own: bool) -> Tensors:
        """That of all particles, or one for each, with the particles first."""
        found: Tensors = {}
        for name in self.job.mask:
            if (weight := self.weights.get(f"model.{name}")) is not None:
                alive = torch.stack([row.job.mask[name] for row in self.rows]) if own else self.job.mask[name]
                found[f"model.{name}"] = alive.to(weight)
        return found

    def _earlier(self, gradients: Sequence[State]) -> Tensors:
        """The gradients of the step before, where the next one needs them; zeros, along which nothing is perturbed."""
        found = {n: torch.zeros_like(w) for n, w in self.weights.items()} if self.job.training.looks_back else {}
        for place, gradient in enumerate(gradients):
            for name, value in gradient.items():
                found[f"model.{name}"][place].copy_(value)
        return found

    def _optimizers(self, memories: Sequence[State]) -> list[Optimizer]:
        """One optimizer for the stack where it treats each number by itself, else one for each particle's slices."""
        job = self.job
        build = job.optimizer or partial(build_optimizer, training=job.training)
        if job.optimizer is None:
            optimizer = build(self.parameters[0])
            if moves_each_number_alone(optimizer):
                load_optimizer(optimizer, self._joined(memories))
                return [optimizer]
        # A factory of the user's may group weights by their shapes, and must see those of one model.
        self.together = False
        self.parameters = [
            [nn.Parameter(weight[place]) for weight in self.weights.values()] for place in range(len(self.seeds))
        ]
        apart = [build(parameters) for parameters in self.parameters]
        for optimizer, memory in zip(apart, memories, strict=True):
            load_optimizer(optimizer, memory)
        return apart

    def _whole(self, compiled: bool, on_gpu: bool) -> Callable[..., None]:
        assert self.formula is not None
        changed = self.weights, self.others, self.earlier, self.formula.state, self.running_loss
        step = self.step.whole(self.formula.update, compiled=compiled)(self.masks, *changed)
        return Graphed(step, tree_leaves(changed)) if on_gpu else step

    def _joined(self, memories: Sequence[State]) -> Tensors:
        """The optimizer memory of the stack from that of its particles; counts and options are the same in all."""
        return {
            name: torch.stack([memory[name] for memory in memories]) if self._of_a_weight(name, first.shape) else first
            for name, first in memories[0].items()
        }

    def _memory(self, place: int) -> Tensors:
        """The optimizer memory of one particle."""
        if not self.together:
            return optimizer_tensors(self.optimizers[place])
        return {
            name: value[place].clone() if self._of_a_weight(name, value.shape[1:]) else value
            for name, value in optimizer_tensors(self.optimizers[0]).items()
        }

    def _of_a_weight(self, name: str, shape: torch.Size) -> bool:
        owner, key = name.split("/", 1)
        if owner.startswith("group") or key.startswith("step"):
            return False
        return shape == [*self.weights.values()][int(owner)].shape[1:]

    def _move(self, gradients: Tensors) -> None:
        for place, (optimizer, parameters) in enumerate(zip(self.optimizers, self.parameters, strict=True)):
            for parameter, gradient in zip(parameters, gradients.values(), strict=True):
                parameter.grad = gradient if self.together else gradient[place]
            optimizer.step()
