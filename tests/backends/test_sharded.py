"""Particles whose weights are spread over the ranks that train them."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.fsdp  # before the ranks are forked, or each of them imports it
from torch import nn

from swamp.backends import Sequential
from swamp.backends.data_parallel import fsdp_blocks
from swamp.backends.distributed import FolderProgress
from swamp.errors import Interrupted, SwampError
from swamp.masks.dtensor import is_sharded, to_local
from swamp.training import RunningMean, Task
from swamp.training.loop import fit
from swamp.training.optimizers import build_optimizer
from swamp.training.snapshot import Snapshot

from .conftest import _convolutional, _dropout, _mlp
from .forked import SEEDS, TRAINING, assert_equal

SIX_STEPS = replace(TRAINING, epochs=2)
KINDS = {
    "plain": SIX_STEPS,
    "clip, no average": replace(SIX_STEPS, clip=0.05, swa_fraction=0),
    "sam": replace(SIX_STEPS, sam=0.2),
    "asam": replace(SIX_STEPS, sam=0.5, sharpness="asam"),
    "s2-sam, moving average": replace(SIX_STEPS, sam=0.2, sharpness="s2-sam", swa=False, ema=0.4),
    "adamw": replace(SIX_STEPS, optimizer="adamw", lr=0.01),
    "unknown optimizer": replace(SIX_STEPS, optimizer="RMSprop", lr=0.01),
}
# Over ranks they add a norm of all gradients, a norm of scaled weights, and an optimizer that runs unsharded.
OVER_RANKS = ("clip, no average", "asam", "unknown optimizer")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "ranks", "particles", "kinds"),
    [
        (_mlp, 2, 1, ("plain", "sam", "adamw")),
        (_convolutional, 2, 1, ("s2-sam, moving average",)),
        (_dropout, 4, 1, OVER_RANKS),
        (_convolutional, 4, 2, ("plain",)),
    ],
    ids=["mlp-2", "convolutional-2", "dropout-4", "convolutional-4"],
    indirect=["model"],
)
def test_sharded_particles_equal_those_of_one_process(ranks, particles, kinds, together, trained):
    seeds = SEEDS[:particles]
    with together.led(ranks, particles=1, sharded=True) as backend:
        ours = {kind: trained(backend, together.model, KINDS[kind], seeds=seeds) for kind in kinds}
    for kind in kinds:
        theirs = trained(Sequential(together.model, together.task), together.model, KINDS[kind], seeds=seeds)
        assert_equal(ours[kind], theirs, within=1e-10)


@pytest.mark.slow
def test_in_float32_too_gradients_are_sums(small, trained):
    data = small.task.train
    small.model.float()
    small.task = Task.of((data.inputs.float(), data.targets), [(data.inputs.float(), data.targets)])
    with small.led(2, particles=1, sharded=True) as backend:
        ours = trained(backend, small.model, seeds=SEEDS[:1])
    assert_equal(ours, trained(Sequential(small.model, small.task), small.model, seeds=SEEDS[:1]), within=1e-5)


@pytest.mark.slow
def test_each_rank_keeps_its_own_rows_of_all_that_training_keeps(small, trained, monkeypatch):
    made: list[Any] = []

    def recorded(kind: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:
            made.append(kind(*args, **kwargs))
            return made[-1]

        return make

    training = replace(TRAINING, optimizer="adamw")
    for kind in (RunningMean, build_optimizer):
        monkeypatch.setitem(fit.__globals__, kind.__name__, recorded(kind))
    with small.led(2, particles=1, sharded=True) as backend:
        trained(backend, small.model, training, seeds=SEEDS[:1])
    optimizer, mean = made
    kept = list(optimizer.param_groups[0]["params"])
    kept += [weight.grad for weight in kept]
    kept += [value for slots in optimizer.state.values() for value in slots.values() if value.dim()]
    kept += mean._mean.values()
    assert len(kept) == 4 * (2 + 2 + 1)
    assert all(is_sharded(tensor) for tensor in kept)
    # 8 outputs are cut into 4 and 4, 3 into 2 and 1; this is the first rank.
    assert sum(to_local(tensor).numel() for tensor in kept) == (4 * 16 + 4 + 2 * 8 + 2) * 5


class Kept(FolderProgress):
    """Asks for a snapshot from the third step on, as if some seconds had passed, and stops after the seventh."""

    def __init__(self, folder: Path, found: Snapshot | None = None) -> None:
        super().__init__(folder)
        self.found, self.at, self.stop = found, 0, lambda: None

    def load_snapshot(self, index: int) -> Snapshot | None:
        return self.found

    def on_step(self, index, step, total, snapshot):
        if self.found is None and step >= 3:
            self.found = snapshot()
            self.at = step
        if step == 7:
            self.stop()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "kind", "ranks", "sharded"),
    [(_convolutional, "s2-sam, moving average", 4, True), (_dropout, "adamw", 2, False)],
    ids=["convolutional", "dropout"],
    indirect=["model"],
)
def test_a_snapshot_has_full_tensors_and_any_number_of_processes_resumes_from_it(
    kind, ranks, sharded, together, trained
):
    training = replace(KINDS[kind], epochs=4)
    theirs = trained(Sequential(together.model, together.task), together.model, training, seeds=SEEDS[:1])
    kept = Kept(together.folder)
    with together.led(2, particles=1, sharded=True) as backend:
        kept.stop = backend.coordinator.stop.set
        with pytest.raises(Interrupted):
            trained(backend, together.model, training, seeds=SEEDS[:1], progress=kept)
    assert kept.at == 4  # asked for after step 3, known to all after step 4
    assert kept.found is not None
    assert all(value.shape == together.model.state_dict()[name].shape for name, value in kept.found.weights.items())
    assert bool(kept.found.gradient) == training.uses_previous_gradient

    together.pids = []
    together.followed = lambda coordinator: Kept(together.folder, kept.found)
    with together.led(ranks, particles=1, sharded=sharded) as backend:
        resumed = [backend, Sequential(together.model, together.task)]
        for one in resumed:
            progress = Kept(together.folder, kept.found)
            ours = trained(one, together.model, training, seeds=SEEDS[:1], progress=progress)
            assert ours[0].steps == 12
            assert_equal(ours, theirs, within=1e-10)


@pytest.mark.slow
def test_a_parameter_of_one_number_is_refused(small, trained):
    class Scaled(nn.Module):
        def __init__(self, body: nn.Module) -> None:
            super().__init__()
            self.body, self.scale = body, nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, inputs):
            return self.body(inputs) * self.scale

    small.model = Scaled(small.model)
    with small.led(2, particles=1, sharded=True) as backend, pytest.raises(SwampError, match="'scale' is one number"):
        trained(backend, small.model, seeds=SEEDS[:1])


def test_blocks_are_what_is_called_and_shares_nothing():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 4)
            self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.Linear(4, 4))])
            self.head = nn.Linear(4, 5, bias=False)
            self.head.weight = self.embedding.weight

    model = Tied()
    assert fsdp_blocks(model) == [model.layers[0], model.layers[1][1]]
