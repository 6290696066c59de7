"""Magnitude: the criterion of iterative magnitude pruning."""

from torch import Tensor, nn

from swamp.masks import Mask
from swamp.scores.context import ScoringContext


def magnitude(model: nn.Module, mask: Mask, context: ScoringContext) -> dict[str, Tensor]:
    """Absolute value of each weight: |w| (Han et al. 2015). Needs no data.

    Args:
        model: The network; it is not changed.
        mask: Names the weights to score.
        context: Not used.

    Returns:
        Name to scores of the weight's shape and dtype.

    Examples:
        >>> import torch
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(model.weight, -0.5)
        >>> magnitude(model, Mask.ones(model), ScoringContext(torch.Generator()))
        {'weight': tensor([[0.5000, 0.5000]])}
    """
    del context
    parameters = dict(model.named_parameters())
    return {name: parameters[name].detach().abs() for name in mask}
