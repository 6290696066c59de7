"""Networks and helpers of the export tests."""

import torch
from torch import Tensor, nn

from swamp.masks import Mask
from swamp.runtime import Program, folded, trace
from swamp.runtime.sparse import Choice, Plan
from swamp.training import Seed, isolated


def pruned_(model: nn.Module, sparsity: float, seed: int = 0) -> nn.Module:
    """The model in eval mode, with statistics that are no identity and that share of zeros in its weights."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            size = module.num_features
            module.running_mean.copy_(torch.randn(size, generator=generator) / 4)
            module.running_var.copy_(torch.rand(size, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(size, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(size, generator=generator) / 4)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data[torch.rand(parameter.shape, generator=generator) < sparsity] = 0
    return model.eval()


def built(make, sparsity: float = 0.8, seed: int = 0) -> nn.Module:
    with isolated(Seed(seed)):
        return pruned_(make(), sparsity, seed)


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(program: Program, inputs: Tensor, width: int, dense: frozenset[str] = frozenset()) -> Tensor:
    """The output of the kernels with blocks of `width`, run twice: what a call leaves in the arena must not matter."""
    plan = Plan(folded(program), Choice(width, dense))
    with torch.no_grad():
        plan([inputs + 1])
        return plan([inputs])


def same(model: nn.Module, inputs: Tensor, width: int, within: float = 1e-4) -> None:
    """The kernels give what the model gives."""
    with torch.no_grad():
        want = model(inputs)
    found = run(trace(model, torch.cat([inputs, inputs])), inputs, width)
    assert found.shape == want.shape
    assert (found - want).abs().max() <= within * max(1, want.abs().max())


def mask_of(model: nn.Module) -> Mask:
    return Mask.from_zeros(model)
