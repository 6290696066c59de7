"""Whether a run fits on the disk, asked before it begins."""

import shutil

from torch import nn

from swamp.errors import SwampError
from swamp.runs.config import RunConfig
from swamp.runs.directory import RunDirectory


def check_space(directory: RunDirectory, config: RunConfig, model: nn.Module, per_epoch: int) -> None:
    """Raise SwampError, with both numbers, where the run needs more than is free.

    per_epoch: steps of an epoch, of which paths have a point every so many.
    """
    schedule = config.plan.schedule()
    one = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values())
    kept = sum(schedule.particles) if config.keep_checkpoints == "particles" else max(schedule.particles)
    # Besides: a mean a cycle, the ticket, the published model, and one snapshot with optimizer state and mean.
    whole = one * (kept + len(schedule) + 2 + 5)
    if config.trajectory_every:
        points = config.training.epochs * per_epoch // config.trajectory_every + 1
        cycles = zip(schedule.densities, schedule.particles, strict=True)
        # A bit for every weight besides.
        whole += round(one * sum(count * (points * density + 1 / 32) for density, count in cycles))
    method = config.plan.setting
    if method.masks == "dynamic":
        # All particles of a cycle in one snapshot, which is written beside the one before it.
        whole += 2 * 5 * one * max(schedule.particles)
    if method.ensemble or method.pools:
        whole *= (config.plan.most_particles if method.ensemble else 1) + 1
    present = sum(file.stat().st_size for file in directory.path.rglob("*.safetensors"))
    needed = max(0, whole - present)
    free = shutil.disk_usage(directory.path).free
    if needed > free:
        seldom = " or paths with fewer points (--trajectory-every)" if config.trajectory_every else ""
        raise SwampError(
            f"the run needs up to {needed / 1e6:,.2f} MB in {directory.path} and {free / 1e6:,.2f} MB are free. "
            f"Free some space, choose another --out, or keep less with --keep-checkpoints means{seldom}."
        )
