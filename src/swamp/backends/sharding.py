"""A model's parameters spread over the processes that train it together: torch's FSDP2, block by block."""

from collections import Counter
from collections.abc import Generator
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from swamp.errors import SwampError

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def shard(model: nn.Module, group: Any) -> None:
    """Leave each process of `group` its rows of every parameter; those of a block come together while it computes.

    Gradients come out as the sum over the processes. Raises SwampError for a parameter that has no rows.
    """
    # Here: it takes a while to import, and hardly any run needs it.
    from torch.distributed.fsdp import FSDPModule, fully_shard

    bare = [name for name, parameter in model.named_parameters() if parameter.dim() == 0]
    if bare:
        raise SwampError(f"the parameter {bare[0]!r} is one number, which FSDP2 cannot shard. Leave --shard out.")
    device = next(model.parameters()).device
    if device.type == "cuda":
        torch.cuda.set_device(device)
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()
    # Named after its group: torch plans transfers once for all meshes that look alike, also in a later world's groups.
    mesh = DeviceMesh.from_group(group, device.type, mesh_dim_names=(f"data-{group.group_name}",))
    for module in [*blocks(model), model]:
        fully_shard(module, mesh=mesh)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Anything but a sum is done by NCCL alone: gloo takes float32's mean for a sum, and says nothing.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def can_shard() -> bool:
    """Whether this torch has all that `shard` needs."""
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:
        return False
    return hasattr(FSDPModule, "set_force_sum_reduction_for_comms")


def blocks(model: nn.Module) -> list[nn.Module]:
    """Modules that are called one after another and share no parameter with others: children, of containers too."""
    uses = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    # A tied parameter stays with the model itself, whose parameters are there all the time.
    return [block for block in _called(model) if all(uses[id(parameter)] == 1 for parameter in block.parameters())]


def _called(module: nn.Module) -> Generator[nn.Module]:
    for child in module.children():
        # A container may be walked by its owner and never be called itself.
        if isinstance(child, _CONTAINERS):
            yield from _called(child)
        elif any(True for _ in child.parameters()):
            yield child
