"""A copy of a model that is ready to leave: the mask is in its weights."""

import copy
import warnings

from torch import nn

from swamp.errors import MaskError, shortened
from swamp.masks import Mask


def finalise(model: nn.Module, mask: Mask | None = None) -> nn.Module:
    """A copy of `model` in eval mode whose pruned weights are zero; the model itself is not touched.

    mask: by default the zeros of the model's weights. Warns of tensors with zeros that the mask does not name: these
    are skipped as well, but count as alive in its sparsity. Raises MaskError for a mask of another model, and where
    there is neither a mask nor a zero.
    """
    final = copy.deepcopy(model).eval()
    if mask is None:
        mask = Mask.from_zeros(final)
        if mask.nnz == mask.prunable:
            raise MaskError(
                f"{type(model).__name__} has no pruned weight: give its mask (swamp.Mask.load), or prune it first."
            )
    mask.apply_(final)
    weights = dict(final.named_parameters())
    more = [name for name, alive in mask.items() if int((weights[name] != 0).sum()) < int(alive.sum())]
    if more:
        warnings.warn(f"weights of {shortened(more)} are zero where the mask says they live.", stacklevel=2)
    return final
