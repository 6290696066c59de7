"""Channels: rows of dimension 0 live or die whole."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from swamp.errors import SwampError
from swamp.masks.allocate import SHARES, allocation_named, floors
from swamp.masks.mask import Mask


@dataclass(frozen=True)
class Channels:
    """Whole output channels: rows of a Linear, filters of a convolution; the model's output layer stays dense.

    Only weights are masked: the bias and the BatchNorm of a dead channel stay, and so do the weights of the next layer
    that read it. A channel is a row of dimension 0, which of a transposed convolution is an input channel.
    """

    def check_allocation(self, allocation: str) -> None:
        """One ranking of all channels (global), or an allocation that is made of shares (uniform, erk)."""
        allocation_named(allocation)
        if allocation != "global" and allocation not in SHARES:
            raise SwampError(f"structure channel goes with {', '.join(['global', *SHARES])}, not with {allocation!r}.")

    def check(self, mask: Mask, kept: int, floor: int = 0) -> None:
        """Refuse a mask with half a channel, and a count that one channel in each tensor exceeds."""
        for name, tensor in mask.items():
            rows = _rows(tensor)
            part = (rows.any(1) & ~rows.all(1)).nonzero()
            if len(part):
                raise SwampError(
                    f"channel {int(part[0])} of {name!r} is neither whole nor empty, so it cannot live or die whole. "
                    "Start from a dense mask."
                )
        promised = _promised(mask, floor)
        least = sum(count * _rows(mask[name]).shape[1] for name, count in promised.items())
        if kept < least:
            raise SwampError(
                f"{kept} of {mask.prunable} weights cannot be kept in whole channels: one channel of each tensor, and "
                f"as many as a floor of {floor} asks for, have {least}. Ask for a lower sparsity or a smaller floor."
            )

    def shrink(self, mask: Mask, scores: Mapping[str, Tensor], kept: int, allocation: str, floor: int) -> Mask:
        """The first channels of one ranking, as many as have no more than `kept` weights together.

        A channel's score is the mean score of its weights, so that wide and narrow layers compare. The ranking starts
        with the best channels of each tensor that are promised: one, or as many as hold `floor` weights. The others
        follow by score (global), or by the density their tensor has with them, over its share (uniform, erk). Of equal
        ranks the earlier tensor's, then the earlier channel goes first. Where `kept` are no fewer than live, nothing
        dies.
        """
        self.check(mask, kept, floor)
        promised = _promised(mask, floor)
        shares = None if allocation == "global" else SHARES[allocation](mask)
        keys: list[NDArray[Any]] = []
        widths: list[NDArray[Any]] = []
        for name, tensor in mask.items():
            turned, width = _turned_means(scores[name], tensor), _rows(tensor).shape[1]
            places = turned.argsort(kind="stable").argsort(kind="stable")
            key = turned if shares is None else (places + 1) * width / shares[name]
            keys.append(np.where(places < promised[name], -np.inf, key))
            # A dead channel stays dead: it comes last, wider than there is room.
            dead = ~_rows(tensor).any(1).cpu().numpy()
            keys[-1][dead] = np.inf
            widths.append(np.where(dead, kept + 1, width))
        order = np.concatenate(keys).argsort(kind="stable")
        together = np.concatenate(widths)[order].cumsum()
        chosen = np.zeros(len(order), dtype=bool)
        chosen[order[: together.searchsorted(kept, side="right")]] = True
        parts = np.split(chosen, np.cumsum([len(key) for key in keys])[:-1])
        return Mask({name: _spread(part, mask[name]) for name, part in zip(mask, parts, strict=True)})


def _rows(tensor: Tensor) -> Tensor:
    return tensor.reshape(1, 1) if tensor.dim() == 0 else tensor.reshape(len(tensor), tensor.shape[1:].numel())


def _promised(mask: Mask, floor: int) -> dict[str, int]:
    """Channels that each tensor keeps at least: one, or as many as hold the floor."""
    counts: dict[str, int] = {}
    for name, low in floors(mask.kept_by_layer, floor).items():
        rows = _rows(mask[name])
        counts[name] = min(max(1, math.ceil(low / max(1, rows.shape[1]))), int(rows.any(1).count_nonzero()))
    return counts


def _turned_means(score: Tensor, alive: Tensor) -> NDArray[Any]:
    """Mean score of each channel with its sign turned, so that the best comes first; infinite for the dead."""
    means = _rows(score.detach()).cpu().double().mean(1)
    return (-means).masked_fill(~_rows(alive).any(1).cpu(), torch.inf).numpy()


def _spread(channels: NDArray[Any], like: Tensor) -> Tensor:
    rows = torch.from_numpy(channels).to(like.device)  # pyright: ignore[reportUnknownMemberType]
    return rows.reshape((*like.shape[:1], *(1 for _ in like.shape[1:]))).expand_as(like).contiguous()
