"""swamp transfer."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from swamp.algorithms.plan import Plan, Transfer
from swamp.cli.help import print_help
from swamp.cli.run import option_value, run_configured
from swamp.cli.session import parse
from swamp.datasets import task_named
from swamp.errors import SwampError
from swamp.recipes import configuration, for_task
from swamp.references import PYTHON_PREFIX
from swamp.runs.config import RunConfig, changed_options
from swamp.runs.read import open_run
from swamp.runs.transfer import finished_records


@dataclass(frozen=True)
class TransferArgs:
    """Transfer: train the weights, the mask or the sparsity of a finished run on another task, by one cycle.

      swamp transfer SOURCE --task TARGET                    the pruned weights and their mask, fine-tuned
      swamp transfer SOURCE --task TARGET --keep mask        only the mask, trained from the source's ticket
      swamp transfer SOURCE --task TARGET --keep sparsity    only the density of each layer, as a random mask
      swamp transfer SOURCE --task TARGET --sparsity 0.9     another cycle than the last one; or by number, --cycle 3
      swamp transfer SOURCE --task TARGET --method swamp --particles 4      the mean of four particles

    SOURCE is the directory of a finished run. Its model is used again, and its training if the task is the same (other
    --classes, for example); otherwise the training suits the target, as in swamp run --task. What the shape of the data
    decides is made anew and named: the inputs of the first layer and the outputs of the last one, with a random mask of
    the same density. A hidden layer that does not fit is refused. The result is a run like others: resume, compare,
    report and export work on it. Its costs are those of the training on the target.

    All options of swamp run are available. Their defaults follow from SOURCE and TARGET: add --help to such a line.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    cycle: int | None = None
    """Cycle of the source to transfer (default: by --sparsity, which is that of the last cycle)."""
    out: Path | None = None
    """Run directory (default: runs/transfer-NAME; the name is made from the settings)."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""
    quiet: bool = False
    """Show no progress."""


_TEXTS = {"sparsity": "Sparsity of the source's cycle to transfer."}
TRANSFER_HELP = {
    "Source": ("keep", "sparsity", "cycle"),
    "Target": ("task", "classes", "model", "examples"),
    "Training on the target": ("method", "particles", "epochs", "batch_size", "lr", "optimizer"),
    "Run": ("seed", "device", "backend", "out", "track", "json", "quiet"),
}
"""Options of `swamp transfer --help`."""


def transfer_command(arguments: Sequence[str]) -> None:
    """swamp transfer SOURCE [options]."""
    usage, rest = "swamp transfer SOURCE", list(arguments)
    source = rest.pop(0) if rest and not rest[0].startswith("-") else ""
    task = option_value(rest, "--task")
    if not {"-h", "--help", "--help-all"}.isdisjoint(rest):
        # The defaults are known with both: they are those of the source and of the target.
        known = bool(source and task)
        default = transfer_configuration(source, task, option_value(rest, "--model")) if known else configuration()
        shown = None if "--help-all" in rest else TRANSFER_HELP
        print_help(usage, TransferArgs(default), shown, defaults=known, texts=_TEXTS)
        sys.exit(0)
    if not source or not task:
        missing = "the directory of a finished run" if not source else "the task to transfer to (--task)"
        raise SwampError(f"give {missing}, e.g.: swamp transfer runs/imp --task digits")
    default = transfer_configuration(source, task, option_value(rest, "--model"))
    given = parse(TransferArgs, usage, rest, TransferArgs(default))
    config = given.config
    if given.cycle is not None:
        if "sparsity" in changed_options(default, config):
            raise SwampError("give --cycle or --sparsity, not both: each chooses a cycle of the source.")
        config = replace(config, plan=replace(config.plan, sparsity=_sparsity(source, given.cycle)))
    path = given.out or Path("runs") / f"transfer-{config.plan.transfer.keep}-{config.name()}"
    run_configured(default, config, path, as_json=given.json, quiet=given.quiet)


def transfer_configuration(source: str, task: str, model: str = "") -> RunConfig:
    """The configuration of a transfer of the last cycle, by one training, before other options change it.

    Raises:
        SwampError: `source` holds no finished run, or there is no such task.
    """
    config = open_run(source)[1]
    task_named(task)
    if config.model.startswith(PYTHON_PREFIX) and not model:
        raise SwampError(
            f"{source} was started from Python, with a model of that program. Name a function that makes it for the "
            "target (--model package.module:function), or call swamp.transfer there."
        )
    sparsity = _sparsity(source, -1)
    if task == config.task:
        found = replace(config, data=replace(config.data, classes=""))
    else:
        found = replace(for_task(task, model or config.model, config), model=config.model)
    before = config.plan
    plan = Plan(
        method="imp",
        sparsity=sparsity,
        ticket_epochs=0,
        seed=before.seed,
        include=before.include,
        exclude=before.exclude,
        prune_output_layer=before.prune_output_layer,
        transfer=Transfer(source),
    )
    return replace(found, recipe=task, plan=plan, track="", shard=False, trajectory_every=0, backend="auto")


def _sparsity(source: str, cycle: int) -> float:
    """The sparsity of a cycle of the source, a negative one counted from the last."""
    records = finished_records(source)
    if not -len(records) <= cycle < len(records):
        raise SwampError(f"{source} has the cycles 0 to {len(records) - 1}; there is no cycle {cycle}.")
    return float(records[cycle]["sparsity"])
