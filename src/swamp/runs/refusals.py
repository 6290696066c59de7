"""What cannot be run is refused before it begins: devices that are not here, directories of others, ranks too many."""

import os

import torch

from swamp.backends import World, can_shard, ranks
from swamp.datasets import Problem
from swamp.errors import SwampError
from swamp.runs.config import RunConfig, differences
from swamp.runs.directory import RunDirectory


def device_kind(config: RunConfig) -> str:
    """cpu or cuda, for ranks to compare; why not, where there is no such device."""
    try:
        return device_named(config.device).type
    except SwampError as error:
        return str(error)


def device_named(name: str) -> torch.device:
    """The device of that name; of several GPUs of a host this rank's own. Raises SwampError where it is not here."""
    if name in ("auto", "cuda") and torch.cuda.is_available() and ranks() > 1:
        # Each rank of a host takes a GPU of its own, as far as they go.
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise SwampError(f"device {name!r} is not one that torch knows; use auto, cpu or cuda.") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise SwampError(f"device {name!r} is not here: torch sees {torch.cuda.device_count()} GPUs. Use --device cpu.")
    if device.type != "cuda":
        try:
            torch.zeros(1, device=device).item()
        except Exception as error:  # Each kind of device has a way of its own to say that it is not there.
            why = str(error).strip().splitlines()[0].split(". ")[0]
            raise SwampError(f"device {name!r} cannot be used here ({why}). Use auto, cpu or cuda.") from error
    return device


def refuse_foreign(directory: RunDirectory, config: RunConfig) -> None:
    """Refuse to begin in a directory that holds anything: another run, this one, or files that are no run's."""
    try:
        str(directory.path).encode()
    except UnicodeEncodeError as error:
        # The library that reads the files of tensors takes UTF-8 alone: such a run could not be resumed.
        raise SwampError(f"{directory.path} is no text in UTF-8. Choose another --out.") from error
    if not directory.path.exists() or not any(
        entry.name != "lock" and not entry.name.startswith(".") for entry in directory.path.iterdir()
    ):
        return
    if not directory.config.exists():
        raise SwampError(f"{directory.path} is not empty and holds no run of swamp. Choose another --out.")
    other = differences(RunConfig.load(directory.config), config)
    if other:
        raise SwampError(f"{directory.path} holds another run ({'; '.join(other)}). Choose another --out.")
    state = "is finished" if directory.summary.exists() else f"can go on: swamp resume {directory.path}"
    raise SwampError(f"{directory.path} holds this very run, which {state}. Choose another --out to run it anew.")


def most_particles(config: RunConfig) -> int:
    """The most particles that are trained from one ticket; the members of an ensemble are runs of one each."""
    return max(config.plan.schedule().particles)


def refuse_idle(config: RunConfig, problem: Problem, world: World | None) -> None:
    """Refuse more ranks than there are particles times rows of a batch."""
    particles = most_particles(config)
    rows = min(config.training.batch_size, len(problem.task.train))
    if world is not None and world.size > particles * rows:
        raise SwampError(
            f"{world.size} ranks are more than {particles} particles of {rows} examples a step can use. "
            f"Start at most {particles * rows}, better {particles}."
        )


def refuse_changing(config: RunConfig, world: World | None) -> None:
    """Refuse several ranks where masks change while particles train."""
    if world is not None and config.plan.setting.masks == "dynamic":
        raise SwampError(
            f"the masks of {config.plan.method} change while it trains, which several ranks cannot do together. Leave "
            "torchrun out; several such runs at once are a study: swamp study --help."
        )


def refuse_lonely_shards(config: RunConfig) -> None:
    """Refuse to spread particles over ranks that are too few, or by a torch that cannot."""
    particles = most_particles(config)
    if config.shard and ranks() < 2 * particles:
        raise SwampError(
            f"--shard spreads each of {particles} particles over two ranks or more, and there are {ranks()} in all. "
            f"Start {2 * particles} or more with torchrun --nproc-per-node={2 * particles}, or leave --shard out."
        )
    if config.shard and not can_shard():
        raise SwampError(f"--shard needs a newer torch than {torch.__version__}. Update it, or leave --shard out.")
