import copy
import logging
import os
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from swamp import Mask, MaskError, Particle, Plan, Seed, SwampError, Task, TensorData, Training, cycles
from swamp.backends import Sequential, Ticket, TrainJob, TrainRequest
from swamp.integrations.lightning import HoldMask, backend
from swamp.training.rng import isolated

from .ddp import on_two_ranks

# What Lightning says of small data on few cores, and of its own parts.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec.* is deprecated"),
    pytest.mark.filterwarnings("ignore:.*`max_epochs` was not set"),
]
SEEDS = [(index, Seed(0).at("cycle", 1, "particle", index)) for index in (0, 1)]
TRAINING = Training(epochs=4, batch_size=8, lr=0.05, swa_fraction=0.5)


class Net(lightning.LightningModule):
    """A user's module: its network is below it, so that parameter names have a prefix."""

    def __init__(self, optimizer: str = "SGD", **options: Any) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
        self.kind, self.options = optimizer, {"lr": 0.05, **options}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return getattr(torch.optim, self.kind)(self.parameters(), **self.options)


def net(*given: Any, **options: Any) -> Net:
    with isolated(Seed(2)):
        return Net(*given, **options)


def tensors() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(48, 6, generator=generator)
    return inputs, (inputs[:, :3]).argmax(1)


def loader() -> Any:
    return DataLoader(TensorDataset(*tensors()), batch_size=8, shuffle=True)


def half(model: nn.Module) -> Mask:
    return Mask({name: torch.arange(p.numel()).view(p.shape) % 2 == 0 for name, p in Mask.ones(model).items()})


def trainer_in(folder: Path, **options: Any) -> lightning.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    settings: dict[str, Any] = {
        "max_epochs": 3,
        "accelerator": "cpu",
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **options,
    }
    return lightning.Trainer(**settings)


@pytest.fixture
def task() -> Task:
    data = TensorData(*tensors())
    return Task(data, data)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("SGD", {"momentum": 0.9, "weight_decay": 0.1}), ("AdamW", {}), ("RMSprop", {"momentum": 0.5, "centered": True})],
)
def test_fitting_a_sparse_module_keeps_its_zeros_and_trains_the_rest(kind, options, tmp_path):
    model = net(kind, **options)
    mask = half(model)
    mask.apply_(model)
    before = copy.deepcopy(model.state_dict())
    trainer = trainer_in(tmp_path, callbacks=[HoldMask()], gradient_clip_val=0.1, accumulate_grad_batches=2)
    trainer.fit(model, loader())
    assert Mask.from_zeros(model) == mask
    for name, alive in mask.items():
        assert (model.state_dict()[name] != before[name])[alive].any(), name
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_checkpoints_are_sparse_logs_are_written_and_a_resumed_fit_keeps_zeros(tmp_path):
    model = net("AdamW")
    mask = half(model)
    mask.apply_(model)
    again = copy.deepcopy(model)
    saving = {"enable_checkpointing": True, "logger": CSVLogger(tmp_path, name="log"), "log_every_n_steps": 1}
    keep = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, every_n_epochs=1, filename="{epoch}")
    trainer_in(tmp_path, callbacks=[HoldMask(), keep], **saving).fit(model, loader())
    file = tmp_path / "kept" / "epoch=1.ckpt"
    saved = torch.load(file, weights_only=True)["state_dict"]
    assert all(int(saved[name][~alive].count_nonzero()) == 0 for name, alive in mask.items())
    assert (tmp_path / "log" / "version_0" / "metrics.csv").read_text().count("\n") == 19
    kept_on = ModelCheckpoint(tmp_path / "kept", save_top_k=-1, every_n_epochs=1)
    on = trainer_in(tmp_path, callbacks=[HoldMask(mask), kept_on], enable_checkpointing=True)
    on.fit(again, loader(), ckpt_path=file, weights_only=True)
    assert on.global_step == 18
    assert Mask.from_zeros(again) == mask


def test_a_dense_module_and_several_optimizers_are_refused(tmp_path):
    with pytest.raises(SwampError, match="has no zeros to keep"):
        trainer_in(tmp_path, callbacks=[HoldMask()]).fit(net(), loader())

    class Two(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self) -> Any:
            return [torch.optim.SGD(layer.parameters(), 0.1) for layer in (self.net[0], self.net[2])]

    with pytest.raises(SwampError, match="one optimizer, this module has 2"):
        trainer_in(tmp_path, callbacks=[HoldMask(half(net()))]).fit(Two(), loader())


def test_an_optimizer_replaced_after_training_began_is_found_before_its_first_step(tmp_path):
    class Replaces(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                trainer.strategy.optimizers = [torch.optim.SGD(pl_module.parameters(), lr=0.1)]

    model = net()
    mask = half(model)
    mask.apply_(model)
    with pytest.raises(MaskError, match="not the one that the module had"):
        trainer_in(tmp_path, callbacks=[HoldMask(), Replaces()]).fit(model, loader())
    assert Mask.from_zeros(model) == mask
    assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


def test_a_weight_written_to_is_found_when_it_is_saved(tmp_path):
    class Writes(Callback):
        def on_train_batch_end(self, trainer, pl_module, *others):
            with torch.no_grad():
                pl_module.net[0].weight += 1

    model = net()
    half(model).apply_(model)
    with pytest.raises(MaskError, match=r"pruned weights of 'net\.0\.weight' are not zero"):
        trainer_in(tmp_path, callbacks=[HoldMask(), Writes()], enable_checkpointing=True).fit(model, loader())


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_strategies_that_spread_parameters_are_refused_by_name(name):
    trainer = SimpleNamespace(strategy=type(name, (), {})(), optimizers=[])
    with pytest.raises(SwampError, match=f"does not support parameters sharded by {name}"):
        HoldMask().on_train_start(trainer, net())


def in_swamps_order(task: Task) -> Any:
    class Batches:
        """The loader of one particle: each epoch in the order in which swamp takes it."""

        def __init__(self, job: TrainJob) -> None:
            self.job = job

        def __len__(self) -> int:
            return self.job.per_epoch

        def __iter__(self) -> Any:
            epoch = self.job.step // self.job.per_epoch
            return task.train.shuffled(self.job.training.batch_size, self.job.seed, epoch)

    return Batches


@pytest.mark.parametrize(
    "averaged", [{"swa": True}, {"swa": False}, {"swa": False, "ema": 0.9}, {"swa": False, "lawa": 2}]
)
@pytest.mark.parametrize("last", [None, 10])
def test_particles_are_those_of_the_librarys_own_loop(last, averaged, task, tmp_path):
    model, training = net().double(), replace(TRAINING, **averaged)
    wide = replace(task, train=replace(task.train, inputs=task.train.inputs.double()))
    arguments = Ticket(model.state_dict(), 0), half(model), training, SEEDS
    theirs = backend(model, wide, lambda job: trainer_in(tmp_path), in_swamps_order(wide))
    own = Sequential(model, wide, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05))
    for mine, library in zip(
        theirs.train(TrainRequest(*arguments, last=last)), own.train(TrainRequest(*arguments, last=last)), strict=True
    ):
        assert (mine.index, mine.steps, mine.averaged) == (library.index, library.steps, library.averaged)
        for name, value in library.weights.items():
            assert torch.allclose(mine.weights[name], value, rtol=0, atol=1e-12), name


def test_a_whole_run_prunes_logs_each_particle_and_its_particles_differ(task, tmp_path):
    def make(job: TrainJob) -> lightning.Trainer:
        return trainer_in(tmp_path, logger=CSVLogger(tmp_path, name=job.name), log_every_n_steps=6)

    plan = Plan(sparsity=0.75, cycles=2, particles=(2,), ticket_epochs=1, barrier_points=1)
    model, generator = net(), torch.get_rng_state()
    trained = backend(model, task, make, lambda job: loader())
    records = [*cycles(model, task, plan, replace(TRAINING, epochs=2), backend=trained)]
    assert records[-1].sparsity == pytest.approx(0.75, abs=0.01)
    for record in records:
        record.mask.require_zeros(record.weights)
        assert [particle.steps for particle in record.particles] == [12, 12]
        assert record.particles[0].loss != record.particles[1].loss
    names = {f"cycle-{cycle}-particle-{index}" for cycle in range(3) for index in range(2)}
    assert {path.name for path in tmp_path.iterdir()} == {"ticket", *names}
    assert torch.equal(torch.get_rng_state(), generator)


def test_the_modules_own_schedule_is_left_alone_where_asked(task, tmp_path):
    seen: list[float] = []

    class Scheduled(Net):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            total = self.trainer.estimated_stepping_batches
            schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])
            return super().training_step(batch, index)

    model = Scheduled()
    arguments = Ticket(model.state_dict(), 0), half(model), TRAINING, SEEDS[:1]
    backend(model, task, lambda job: trainer_in(tmp_path), lambda job: loader(), rates=False).train(
        TrainRequest(*arguments, last=6)
    )
    assert seen == pytest.approx([0.05 * (1 - step / 24) for step in range(6)])
    with pytest.raises(SwampError, match="and 1 schedulers"):
        backend(model, task, lambda job: trainer_in(tmp_path), lambda job: loader()).train(TrainRequest(*arguments))


@pytest.mark.parametrize(
    ("training", "source", "message"),
    [
        ({"batch_size": 16}, loader, "uses 8 examples per step"),
        ({"lr": 0.1}, loader, r"Training\(lr=0\.1\)"),
        ({"clip": 1.0}, loader, "Set gradient_clip_val there"),
        ({}, lambda: DataLoader(TensorDataset(*tensors()), 8, generator=torch.Generator(), shuffle=True), "generator"),
        ({}, lambda: DataLoader(TensorDataset(tensors()[0][:40], tensors()[1][:40]), 8), "takes 5 steps per epoch"),
    ],
)
def test_what_the_trainer_would_not_do_is_refused(training, source, message, task, tmp_path):
    model = net()
    trained = backend(model, task, lambda job: trainer_in(tmp_path), lambda job: source())
    arguments = Ticket(model.state_dict(), 0), half(model), replace(TRAINING, **training), SEEDS
    with pytest.raises(SwampError, match=message):
        trained.train(TrainRequest(*arguments))


def seeded() -> Any:
    return DataLoader(TensorDataset(*tensors()), 8, shuffle=True, generator=torch.Generator().manual_seed(0))


class Module(Net):
    def train_dataloader(self) -> Any:
        return seeded()


class Data(lightning.LightningDataModule):
    def train_dataloader(self) -> Any:
        return {"one": seeded()}


@pytest.mark.parametrize(("module", "data"), [(Module, None), (Net, lambda job: Data())])
def test_a_generator_of_a_loader_is_refused_wherever_the_loader_comes_from(module, data, task, tmp_path):
    model = module()
    arguments = Ticket(model.state_dict(), 0), half(model), TRAINING, SEEDS
    with pytest.raises(SwampError, match="omit the generator of the DataLoader"):
        backend(model, task, lambda job: trainer_in(tmp_path), data).train(TrainRequest(*arguments))


@pytest.mark.filterwarnings("ignore:.*exists and is not empty")
def test_seed_everything_in_make_changes_nothing(task, tmp_path, monkeypatch):
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")

    def make(job: TrainJob) -> lightning.Trainer:
        lightning.seed_everything(42, verbose=False)
        return trainer_in(tmp_path)

    model = net()
    arguments = Ticket(model.state_dict(), 0), half(model), TRAINING, SEEDS
    found, expected = (
        backend(model, task, one, lambda job: loader()).train(TrainRequest(*arguments))
        for one in (make, lambda job: trainer_in(tmp_path))
    )
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(one.weights[name], value) for name, value in other.weights.items())
    assert not torch.equal(found[0].weights["net.0.weight"], found[1].weights["net.0.weight"])


def test_the_loss_of_accumulated_batches_is_their_mean(task, tmp_path):
    model = net()
    arguments = Ticket(model.state_dict(), 0), half(model), replace(TRAINING, lr=1e-9), SEEDS[:1]
    model.options = {"lr": 1e-9}
    losses = [
        backend(
            model,
            task,
            lambda job, parts=parts: trainer_in(tmp_path, accumulate_grad_batches=parts),
            lambda job, parts=parts: DataLoader(TensorDataset(*tensors()), batch_size=8 // parts, shuffle=True),
        )
        .train(TrainRequest(*arguments))[0]
        .losses[0]
        for parts in (1, 4)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


class OfTwoRanks(TensorData):
    """The batches of two ranks together, as torch's DistributedSampler shares an epoch out."""

    def shuffled(self, batch_size, seed, epoch, first=0):
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed.number() % 2**31 + epoch))
        for step in range(first, self.steps(batch_size)):
            yield self.gather(order[step * batch_size : (step + 1) * batch_size])


@pytest.mark.slow
def test_two_ranks_under_ddp_train_what_one_would_with_their_batches_together(tmp_path):
    model = net().double()
    inputs, targets = tensors()
    inputs = inputs.double()

    def work() -> None:
        data = TensorData(inputs, targets)
        trained = backend(
            model,
            Task(data, data),
            lambda job: trainer_in(tmp_path, strategy="ddp", devices=2),
            lambda job: DataLoader(TensorDataset(inputs, targets), batch_size=4, shuffle=True),
        )
        for particle in trained.train(TrainRequest(Ticket(model.state_dict(), 0), half(model), TRAINING, SEEDS)):
            particle.save(tmp_path / f"{os.environ['LOCAL_RANK']}-{particle.index}")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        on_two_ranks(work)
    ranks = [[Particle.load(tmp_path / f"{rank}-{index}") for index in (0, 1)] for rank in (0, 1)]
    data = OfTwoRanks(inputs, targets)
    own = Sequential(model, Task(data, data), optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05))
    library = own.train(TrainRequest(Ticket(model.state_dict(), 0), half(model), TRAINING, SEEDS))
    for index, expected in enumerate(library):
        for name, value in expected.weights.items():
            assert torch.equal(ranks[0][index].weights[name], ranks[1][index].weights[name]), name
            assert torch.allclose(ranks[0][index].weights[name], value, rtol=0, atol=1e-12), name
    assert not torch.equal(library[0].weights["net.0.weight"], library[1].weights["net.0.weight"])


def test_a_dense_module_with_a_mask_can_be_saved_before_training_and_its_frozen_layers_trained_later(tmp_path):
    class Unfreezes(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            pl_module.net[0].weight.requires_grad_(trainer.current_epoch == 1)

    model = net()
    mask, trainer = half(model), trainer_in(tmp_path, callbacks=[HoldMask(half(model)), Unfreezes()])
    model.net[0].weight.requires_grad_(False)
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "dense.ckpt")
    before = model.net[0].weight.detach().clone()
    trainer.fit(model, loader())
    assert Mask.from_zeros(model) == mask
    assert not torch.equal(model.net[0].weight, before * mask["net.0.weight"])
