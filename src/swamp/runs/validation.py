"""Checks before a run starts: device, directory, disk space, number of ranks."""

import os
import shutil
from shlex import quote

import torch
from torch import nn

from swamp.backends.coordinator import Coordinator
from swamp.backends.data_parallel import can_shard
from swamp.backends.rank_variables import local_rank, world_size
from swamp.datasets.problem import Problem
from swamp.errors import SwampError, first_line
from swamp.runs.config import RunConfig, differences
from swamp.runs.directory import RunDirectory
from swamp.training.module_extra_state import as_tensors


def device_type(config: RunConfig) -> str:
    """cpu or cuda, which ranks compare; or the reason why the device cannot be used."""
    try:
        return device_named(config.device).type
    except SwampError as error:
        return str(error)


def device_named(name: str) -> torch.device:
    """The device of that name, or this rank's GPU of several. Raises SwampError if it cannot be used."""
    if name in ("auto", "cuda") and torch.cuda.is_available() and world_size() > 1:
        # One GPU per rank of this host; more ranks than GPUs share them.
        return torch.device("cuda", local_rank() % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SwampError(f"device {name!r} is unknown to torch; use auto, cpu or cuda.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SwampError(
            f"device {name!r} does not exist: torch sees {torch.cuda.device_count()} GPUs. Use --device cpu."
        )
    if device.type != "cuda":
        try:
            torch.zeros(1, device=device).item()
        except Exception as error:  # Each device type raises its own error.
            why = first_line(error).split(". ")[0]
            raise SwampError(f"device {name!r} cannot be used here ({why}). Use auto, cpu or cuda.") from error
    return device


def require_new_directory(directory: RunDirectory, config: RunConfig) -> None:
    """Raise SwampError if the directory has any files: of another run, of this run, or of anything else."""
    above = next(folder for folder in (directory.path, *directory.path.absolute().parents) if os.path.lexists(folder))
    if not above.is_dir():
        raise SwampError(f"{directory.path} cannot be a run directory: {above} is no directory. Choose another --out.")
    if not os.access(above, os.W_OK | os.X_OK):
        raise SwampError(f"{directory.path} cannot be written: no permission in {above}. Choose another --out.")
    try:
        str(directory.path).encode()
    except UnicodeEncodeError as error:
        # safetensors reads paths in UTF-8 only, so such a run could not be resumed.
        raise SwampError(f"{directory.path} is not valid UTF-8. Choose another --out.") from error
    if not directory.path.exists() or not any(
        entry.name != "lock" and not entry.name.startswith(".") for entry in directory.path.iterdir()
    ):
        return
    if not directory.config.exists():
        raise SwampError(f"{directory.path} is not empty and holds no run of swamp. Choose another --out.")
    other = differences(RunConfig.load(directory.config), config)
    if other:
        raise SwampError(f"{directory.path} holds another run ({'; '.join(other)}). Choose another --out.")
    state = "is finished" if directory.summary.exists() else f"can go on: swamp resume {quote(str(directory.path))}"
    raise SwampError(f"{directory.path} holds this very run, which {state}. Choose another --out to run it again.")


def most_particles(config: RunConfig) -> int:
    """Largest number of particles trained from one ticket; each member of an ensemble is a run with one particle."""
    return max(config.plan.schedule().particles)


def check_examples(config: RunConfig, problem: Problem) -> None:
    """Raise SwampError if a transfer has fewer training examples than its target has classes."""
    examples = len(problem.task.train)
    if config.plan.transfer.source and examples < problem.classes:
        raise SwampError(
            f"the target {config.task} has {examples} training examples for {problem.classes} classes. Give it more "
            "--examples, or fewer --classes."
        )


def check_rank_count(config: RunConfig, problem: Problem, coordinator: Coordinator | None) -> None:
    """Raise SwampError if there are more ranks than particles times examples in a batch."""
    particles = most_particles(config)
    rows = 1 if problem.agent else min(config.training.batch_size, len(problem.task.train))
    if coordinator is not None and coordinator.size > particles * rows:
        raise SwampError(
            f"{coordinator.size} ranks are too many for {particles} particles with {rows} examples per step. "
            f"Start at most {particles * rows}, better {particles}."
        )


def check_static_masks(config: RunConfig, coordinator: Coordinator | None) -> None:
    """Raise SwampError for several ranks if masks change during training."""
    if coordinator is not None and config.plan.spec.masks == "dynamic":
        raise SwampError(
            f"the masks of {config.plan.method} change while it trains, which several ranks cannot do together. Leave "
            "torchrun out; several such runs at once are a study: swamp study --help."
        )


def check_shard(config: RunConfig) -> None:
    """Raise SwampError if parameters cannot be sharded: too few ranks, a trunk, or a torch without FSDP2."""
    particles = most_particles(config)
    if config.shard and world_size() < 2 * particles:
        raise SwampError(
            f"--shard spreads each of {particles} particles over two ranks or more; this job has {world_size()}. "
            f"Start {2 * particles} or more with torchrun --nproc-per-node={2 * particles}, or leave --shard out."
        )
    if config.shard and config.plan.branch_fraction < 1 and config.plan.spec.multi_particle:
        raise SwampError(
            f"--shard cannot be used with particles that share a trunk ({config.plan.method}, --branch): the ranks of "
            "a particle cannot save a training at a given step. Leave --shard out."
        )
    if config.shard and not can_shard():
        raise SwampError(f"--shard needs a newer torch than {torch.__version__}. Update it, or leave --shard out.")


def _points(config: RunConfig, cycle: int, per_epoch: int) -> int:
    """Most points in the trajectory of a particle: of the steps that it takes apart from the others."""
    plan, epochs = config.plan, config.training.epochs
    steps = plan.steps_apart(cycle, epochs, plan.particle_epochs(cycle, epochs) * per_epoch)
    return steps // config.trajectory_every + 1


def check_disk_space(directory: RunDirectory, config: RunConfig, model: nn.Module, per_epoch: int) -> None:
    """Raise SwampError if the run needs more disk space than is free. per_epoch: steps of an epoch."""
    schedule = config.plan.schedule()
    one = sum(tensor.numel() * tensor.element_size() for tensor in as_tensors(model.state_dict()).values())
    kept = sum(schedule.particles) if config.keep_checkpoints == "particles" else max(schedule.particles)
    # Also: a mean per cycle, the ticket, the final model, and one snapshot with optimizer state and running mean.
    total = one * (kept + len(schedule) + 2 + 5)
    if config.trajectory_every:
        for cycle, (density, count) in enumerate(zip(schedule.densities, schedule.particles, strict=True)):
            # Each trajectory also has one bit per weight.
            total += round(one * count * (_points(config, cycle, per_epoch) * density + 1 / 32))
    method = config.plan.spec
    if method.masks == "dynamic":
        # One snapshot holds all particles of a cycle, and the previous one exists while it is written.
        total += 2 * 5 * one * max(schedule.particles)
    if method.ensemble or method.pools:
        total *= (config.plan.most_particles if method.ensemble else 1) + 1
    existing = sum(file.stat().st_size for file in directory.path.rglob("*.safetensors"))
    needed = max(0, total - existing)
    free = shutil.disk_usage(directory.path).free
    if needed > free:
        fewer = 'keep less with keep_checkpoints="means"' if config.keep_checkpoints == "particles" else ""
        if config.trajectory_every:
            fewer = "keep fewer trajectory points with trajectory_every"
        raise SwampError(
            f"the run needs up to {needed / 1e6:,.2f} MB in {directory.path} and {free / 1e6:,.2f} MB are free. "
            f"Free some space, or choose another directory{fewer and ', or '}{fewer}."
        )
