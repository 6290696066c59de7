"""Prunes the networks of the zoo, resumes, holds and re-loads them, and writes docs/reference/zoo.md: see `make zoo`.

Each entry is pruned with two particles in two cycles; a run that stops after the first must give the same bits when the
same call continues it; the zeros must hold in ten steps of AdamW; the saved weights must load into a new network.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from safetensors.torch import load_file

import hub
import plain
import swamp
import vision
from entry import Entry, write_table

ENTRIES = (*plain.ENTRIES, *hub.ENTRIES, *vision.ENTRIES)
_HOW = swamp.Training(epochs=4, batch_size=8, lr=0.01, swa_fraction=0.5)
_OPTIONS: dict[str, Any] = {"sparsity": 0.6, "particles": 2, "cycles": 2, "barrier_points": 1, "backend": "sequential"}


@dataclass(frozen=True)
class Outcome:
    """What became of an entry."""

    entry: Entry
    sparsity: float = 0.0
    share: float = 0.0
    """Prunable weights, of all parameters."""
    metric: str = ""
    seconds: float = 0.0
    fault: str = ""


class _Stopped(Exception):  # noqa: N818
    """A run that is left in the middle."""


def _stop(cycle: swamp.Cycle) -> None:
    if cycle.index == 1:
        raise _Stopped


def tried(entry: Entry, folder: Path) -> Outcome:
    """Prune, resume, hold and re-load one entry. Raises AssertionError or the library's error where a promise fails."""
    began = time.perf_counter()
    torch.manual_seed(0)
    model = entry.model()
    task = entry.task()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {**_OPTIONS, **entry.options, "training": _HOW}
        with contextlib.suppress(_Stopped):
            swamp.prune(model, task, out=folder / "run", on_cycle=_stop, **options)
        found = swamp.prune(model, task, out=folder / "run", **options)
        whole = swamp.prune(model, task, **options)
    assert len(found.cycles) == 3
    assert abs(found.sparsity - 0.6) < 0.02, f"sparsity {found.sparsity}"
    for name, tensor in found.model.state_dict().items():
        if isinstance(tensor, torch.Tensor):
            assert torch.equal(tensor, whole.model.state_dict()[name]), f"{name} is another one after a resume"
    _hold(found, task)
    found.save(folder / "weights.safetensors")
    torch.manual_seed(1)
    fresh = entry.model()
    missing = fresh.load_state_dict(load_file(folder / "weights.safetensors"), strict=False)
    assert not missing.unexpected_keys, f"unexpected {missing.unexpected_keys}"
    found.mask.require_zeros(fresh.state_dict())
    share = found.mask.prunable / sum(parameter.numel() for parameter in model.parameters())
    name, value = next(iter(found.cycles[-1].metrics.test.items()))
    return Outcome(entry, found.sparsity, share, f"{name} {value:.3g}", time.perf_counter() - began)


def _hold(found: swamp.SparseModel, task: swamp.Task) -> None:
    """Train the sparse network on by a loop of its own."""
    model: nn.Module = found.model
    mask = found.mask
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    with swamp.hold(model, mask, optimizer):
        for step in range(10):
            inputs, targets = next(iter(task.train.shuffled(8, swamp.Seed(step), 0)))
            optimizer.zero_grad()
            task.loss(task.forward(model, inputs), targets).backward()
            optimizer.step()
    mask.require_zeros(model.state_dict())


def table(outcomes: list[Outcome]) -> str:
    """The outcomes as a table of Markdown."""
    lines = [
        "| network or task | library | what the user writes | prunable share | sparsity | test | seconds | outcome |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in outcomes:
        values = (
            f"{100 * one.share:.0f} %", f"{100 * one.sparsity:.1f} %", one.metric, f"{one.seconds:.1f}", "works"
        ) if not one.fault else ("", "", "", "", one.fault)  # fmt: skip
        lines.append(f"| {one.entry.name} | {one.entry.kind} | {one.entry.how} | {' | '.join(values)} |")
    return "\n".join(lines)


def main() -> None:
    """Run the entries that the arguments name (default: all), and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="names of entries (default: all)")
    parser.add_argument("--out", type=Path, help="page whose part between the marks <!-- zoo --> is replaced")
    given = parser.parse_args()
    outcomes: list[Outcome] = []
    torch.set_num_threads(1)
    for entry in ENTRIES:
        if given.names and entry.name not in given.names:
            continue
        with tempfile.TemporaryDirectory() as folder:
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    outcomes.append(tried(entry, Path(folder)))
            except Exception as error:
                if given.names:
                    traceback.print_exc()
                outcomes.append(Outcome(entry, fault=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"))
        print(f"{entry.kind:28} {entry.name:30} {outcomes[-1].fault or outcomes[-1].metric}", flush=True)
    works = sum(not one.fault for one in outcomes)
    print(f"{works} of {len(outcomes)} work")
    if given.out:
        write_table(given.out, "<!-- zoo -->", f"{works} of {len(outcomes)} work.", table(outcomes))
    sys.exit(works < len(outcomes))


if __name__ == "__main__":
    main()
