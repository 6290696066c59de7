"""swamp share."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from swamp.algorithms import SparseModel
from swamp.cli.export import ExportArgs, exported_source
from swamp.cli.session import Err, Out, parse, print_json, warnings_to
from swamp.datasets.problem import Problem
from swamp.models.language import is_pretrained
from swamp.pretrained import push_to_hub, save_pretrained
from swamp.references import PYTHON_PREFIX, is_reference
from swamp.runs import read_cycle
from swamp.runs.read import open_with_cycles


@dataclass(frozen=True)
class ShareArgs:
    """Write the sparse model of a run to a folder with the layout of the Hugging Face Hub, and upload it if asked.

      swamp share runs/x -o digits-sparse                        weights, mask, configuration, card, export
      swamp share runs/x -o digits-sparse --push me/digits       also uploaded (log in first: hf auth login)

    swamp.load reads the folder for inference, swamp.pretrained.from_pretrained for training.
    """

    run: tyro.conf.Positional[Path]
    """Run directory with at least one finished cycle."""
    out: Path = Path("shared")
    """Folder to write; it must not exist, or be empty."""
    push: str = ""
    """USER/NAME: upload the folder to this repository of the Hub (or of the server of HF_ENDPOINT)."""
    private: bool = False
    """Make a new repository private."""
    model: str = ""
    """For a run that was started from Python: package.module:function, or file.py:function, that makes its model."""
    task: str = ""
    """Function that makes the task, likewise."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""


def share_command(arguments: Sequence[str]) -> None:
    """swamp share RUN."""
    args = parse(ShareArgs, "swamp share", arguments)
    with warnings_to(Err):
        directory, config = open_with_cycles(args.run)
        source = exported_source(ExportArgs(args.run, model=args.model, task=args.task))
        sparse = SparseModel.of(source.model, [read_cycle(directory, directory.finished - 1)])
        save_pretrained(
            sparse,
            args.out,
            method=config.plan.method,
            example=source.inputs,
            run=config.to_json(),
            architecture=_architecture(config.model, source.problem),
        )
        address = push_to_hub(args.out, args.push, private=args.private) if args.push else ""
    if args.json:
        print_json({"folder": str(args.out), "files": sorted(path.name for path in args.out.iterdir()), "url": address})
        return
    Out.print(f"written: {args.out}: {', '.join(sorted(path.name for path in args.out.iterdir()))}", soft_wrap=True)
    if address:
        Out.print(f"uploaded: {address}", soft_wrap=True)
    else:
        Out.print(f"Upload it: hf upload USER/NAME {shlex.quote(str(args.out))}", soft_wrap=True)


def _architecture(name: str, problem: Problem | None) -> Mapping[str, Any] | None:
    """How to build the network of a run again without its data; None where its name is not enough."""
    built_otherwise = name.startswith((PYTHON_PREFIX, "timm")) or is_reference(name) or is_pretrained(name)
    if problem is None or problem.tokens or built_otherwise:
        return None
    return {"name": name, "shape": list(problem.shape), "classes": problem.classes}
