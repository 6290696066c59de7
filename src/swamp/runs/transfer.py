"""Transfer: the weights and the mask with which a run on one task starts, taken from a finished run on another."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from torch import Tensor, nn

from swamp.algorithms.plan import Plan
from swamp.backends import Ticket
from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.runs.directory import RunDirectory
from swamp.runs.read import (
    open_run,
    open_with_cycles,
    read_mask,
    read_origin,
    read_record,
    read_ticket,
    read_weights,
    record_at,
    unless_damaged,
)
from swamp.training import Seed
from swamp.training.average import State
from swamp.training.module_extra_state import as_tensors, is_extra_state

TRANSFER = "transfer"
"""Key of config.json's origin, and of the summary, for what was transferred."""
_KEPT = {
    "weights": "the weights and the mask",
    "mask": "the mask, trained from the ticket,",
    "sparsity": "the number of weights in each layer",
}


@dataclass(frozen=True, eq=False)
class TransferSource:
    """One cycle of a finished run, or a sparse model."""

    name: str
    mask: Mask
    weights: State
    """State dict of the cycle's model."""
    ticket: State | None
    """State dict of the run's ticket; None if it has none."""
    about: Mapping[str, Any]
    """Plain values for the record of the transfer."""

    @classmethod
    def of_run(cls, path: Path | str, sparsity: float) -> "TransferSource":
        """The cycle of that sparsity of the run in the directory `path`.

        Raises:
            SwampError: `path` holds no run, the run is not finished, or it has no cycle of this sparsity.
        """
        directory, config = open_run(path)
        records = finished_records(path)
        record = record_at(records, 1 - sparsity)
        if record is None:
            have = ", ".join(f"{one['sparsity']:.4g}" for one in records)
            raise SwampError(f"the run {path} has no cycle of sparsity {sparsity:g}. It has: {have}.")
        index = int(record["cycle"])
        tickets = [one.ticket for one in (directory, directory.member(0)) if one.ticket.exists()]
        ticket = Ticket.load(tickets[0]).weights if tickets else None
        about = {"run": directory.run, "method": config.plan.method, "cycle": index, "sparsity": record["sparsity"]}
        return cls(str(path), read_mask(directory, index), read_weights(directory, index), ticket, about)


@dataclass(frozen=True, eq=False)
class Transferred:
    """The start of a run: weights, mask, and what they were made of."""

    ticket: Ticket
    mask: Mask
    about: Mapping[str, Any]
    """Plain values for config.json: the source, digests of weights and mask, and the tensors that were made anew."""

    def keep(self, directory: RunDirectory) -> None:
        """Write weights and mask into the run directory, which does not need its source afterwards."""
        self.ticket.save(directory.ticket, directory.provenance(directory.ticket))
        self.mask.save(_mask_file(directory), directory.provenance(_mask_file(directory)))

    def line(self, plan: Plan) -> str:
        """One line for a person."""
        source = f"cycle {self.about['cycle']} of {plan.transfer.source}" if "cycle" in self.about else "a sparse model"
        anew = "; ".join(self.about["remade"]) or "nothing"
        what = f"{_KEPT[plan.transfer.keep]} of {source} ({100 * self.mask.sparsity:.2f} % sparse)"
        return f"transfer: {what}; made anew: {anew}"


def finished_records(path: Path | str) -> list[dict[str, Any]]:
    """The records of all cycles of the run in the directory `path`. Raises SwampError if it is not finished."""
    directory, _ = open_with_cycles(path)
    if not directory.summary.exists():
        raise SwampError(
            f"the run {directory.path} is not finished ({directory.finished} cycles so far), so that nothing can be "
            f"transferred from it. Finish it first: swamp resume {quote(str(directory.path))}"
        )
    return [read_record(directory, index) for index in range(directory.finished)]


def transferred(plan: Plan, model: nn.Module, directory: RunDirectory | None = None) -> Transferred | None:
    """The start that `plan` asks for; None if it is no transfer.

    Args:
        plan: Its `transfer` names the source, its `sparsity` the cycle.
        model: Network of the run, with its initial weights.
        directory: The run, if it has begun: what it keeps is read, so that its source may be gone.

    Raises:
        SwampError: The source is no finished run, has no such cycle, or does not fit the network; or it has changed
            since the run began.
    """
    if not plan.transfer.source:
        return None
    about: Mapping[str, Any] = {} if directory is None else read_origin(directory).get(TRANSFER, {})
    if directory is not None:
        again = "It is taken from the source again."
        ticket = unless_damaged([directory.ticket], lambda: read_ticket(directory), again)
        file = _mask_file(directory)
        mask = unless_damaged([file], lambda: directory.load(file, Mask.load), again)
        if ticket and mask and [ticket.id, mask.digest] == [about.get("start"), about.get("mask")]:
            return Transferred(ticket, mask, about)
    found = transferred_from(TransferSource.of_run(plan.transfer.source, plan.sparsity), plan, model)
    if directory is not None and found.about != about:
        raise SwampError(
            f"the source {plan.transfer.source} has changed since {directory.path} began, which lacks its own copy of "
            "it. Restore the source, or start another run."
        )
    return found


def transferred_from(source: TransferSource, plan: Plan, model: nn.Module) -> Transferred:
    """The start of a run of `model` from `source`. Raises SwampError, naming every layer that does not fit."""
    keep = plan.transfer.keep
    if keep == "mask" and source.ticket is None:
        raise SwampError(
            f"{source.name} has no ticket from which its mask could be trained. Keep its weights or its sparsity."
        )
    dense, fresh = Mask.ones(model, plan.scope), as_tensors(model.state_dict())
    remade = _remade(source, model, dense, fresh)
    old = {"weights": source.weights, "mask": source.ticket or {}, "sparsity": {}}[keep]
    start = {
        name: value.cpu() if name in remade or name not in old else old[name].to("cpu", value.dtype)
        for name, value in fresh.items()
    }
    seed = Seed(plan.seed).at("transfer")
    mask = Mask(
        {
            name: one.cpu() if name not in source.mask
            else source.mask[name] if keep != "sparsity" and name not in remade
            else _random(one.shape, source.mask.density_by_layer[name], seed.at(name))
            for name, one in dense.items()
        }
    )  # fmt: skip
    ticket = Ticket(start, 0)
    about = {**source.about, "start": ticket.id, "mask": mask.digest, "remade": list(remade.values())}
    return Transferred(ticket, mask, about)


def _remade(source: TransferSource, model: nn.Module, dense: Mask, fresh: State) -> dict[str, str]:
    """Tensors that get new weights: name -> name and both shapes. Raises SwampError if others do not fit."""
    pairs = {
        name: (source.weights[name].shape if name in source.weights else None, value.shape)
        for name, value in fresh.items()
        if not is_extra_state(name)
    }
    told = {name: _told(name, *shapes) for name, shapes in pairs.items() if shapes[0] != shapes[1]}
    may_differ = _ends(model)
    wrong = [told[name] for name in told if not _fits_at_end(may_differ.get(name), *pairs[name])]
    wrong += [_told(name, value.shape, None) for name, value in source.weights.items() if name not in fresh]
    wrong += [f"{name} is pruned in the source and dense here" for name in source.mask if name not in dense]
    if wrong:
        raise SwampError(
            f"{source.name} does not fit this network: {'; '.join(dict.fromkeys(wrong))}. Only the inputs of the first "
            "layer and the outputs of the last one may differ: take the source's --model and prunable layers."
        )
    return told


def _ends(model: nn.Module) -> dict[str, int]:
    """Name of each tensor that depends on the shape of the data -> the dimension that does.

    These are the inputs of the first layer, the outputs of the last one with its bias, and tokens of embeddings.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    embedded = {id(one.weight) for one in model.modules() if isinstance(one, nn.Embedding)}
    # Tokens and positions of a vision transformer are stored as (1, n, channels).
    layers = {name: one for name, one in parameters.items() if one.dim() == 2 or (one.dim() > 2 and one.shape[0] > 1)}
    matrices = [name for name, one in layers.items() if id(one) not in embedded]
    found = {name: 0 for name, one in parameters.items() if id(one) in embedded}
    if matrices:
        layer = matrices[-1].rpartition(".")[0]
        found |= {name: 0 for name in parameters if name.rpartition(".")[0] == layer}
        found.setdefault(matrices[0], 1)
    return found


def _fits_at_end(dimension: int | None, old: torch.Size | None, new: torch.Size) -> bool:
    """Whether two shapes differ in this dimension only."""
    if dimension is None or old is None or len(old) != len(new):
        return False
    return all(one == two for place, (one, two) in enumerate(zip(old, new, strict=True)) if place != dimension)


def _told(name: str, old: torch.Size | None, new: torch.Size | None) -> str:
    one, two = ("none" if shape is None else str(tuple(shape)) for shape in (old, new))
    return f"{name} {one} -> {two}"


def _random(shape: torch.Size, density: float, seed: Seed) -> Tensor:
    """A random mask of one layer, with at least one weight."""
    chosen = torch.zeros(shape.numel(), dtype=torch.bool)
    order = torch.randperm(len(chosen), generator=seed.generator())
    chosen[order[: max(1, round(density * len(chosen)))]] = True
    return chosen.view(shape)


def _mask_file(directory: RunDirectory) -> Path:
    return directory.path / "transfer.safetensors"
