"""Magnitude: the criterion of iterative magnitude pruning."""

from torch import Tensor, nn

from swamp.masks import Mask
from swamp.scores.score import Evidence


def magnitude(model: nn.Module, mask: Mask, evidence: Evidence) -> dict[str, Tensor]:
    """Absolute value of each weight: |w|. Needs no data; the mode of the model does not matter (Han et al. 2015)."""
    del evidence
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().abs() for name in mask}
