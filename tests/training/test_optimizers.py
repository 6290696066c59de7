import pytest
import torch
from torch import nn

from swamp.errors import SwampError
from swamp.training import Training
from swamp.training.optimizers import build_optimizer, torch_optimizers


def built(**options: object) -> torch.optim.Optimizer:
    return build_optimizer([nn.Parameter(torch.zeros(2))], Training(**options))  # pyright: ignore[reportArgumentType]


def test_options_reach_the_optimizer():
    sgd = built(optimizer="sgd", lr=0.3, momentum=0.8, nesterov=True, weight_decay=0.01).defaults
    assert (sgd["lr"], sgd["momentum"], sgd["nesterov"], sgd["weight_decay"]) == (0.3, 0.8, True, 0.01)
    adamw = built(optimizer="adamw", lr=0.3, weight_decay=0.01)
    assert isinstance(adamw, torch.optim.AdamW)
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (0.3, 0.01)


def test_any_optimizer_of_torch_goes_by_its_name():
    assert isinstance(built(optimizer="RMSprop"), torch.optim.RMSprop)
    assert {"NAdam", "Adagrad"} <= torch_optimizers().keys()
    assert not {"LBFGS", "SparseAdam", "Optimizer"} & torch_optimizers().keys()


def test_names_that_do_not_exist_are_refused_with_the_nearest_ones():
    with pytest.raises(SwampError, match=r"unknown optimizer 'adamv'. Did you mean .*adamw"):
        built(optimizer="adamv")


def test_an_optimizer_of_other_options_is_refused_with_the_way_out():
    with pytest.raises(SwampError, match=r"Rprop cannot be built .* optimizer=.package.module:function"):
        built(optimizer="Rprop")


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_of_sixteen_bits_move_on_cpu_as_torch_moves_them_one_by_one(name, dtype):
    """torch's fused kernels left whole vectors of them as they were, and nobody was told."""
    weights = [nn.Parameter(torch.ones(100, dtype=dtype)) for _ in range(2)]
    plain = torch.optim.SGD if name == "sgd" else torch.optim.AdamW
    more = {"momentum": 0.9} if name == "sgd" else {}
    training = Training(optimizer=name, lr=0.1, weight_decay=0.0)
    ours = build_optimizer(weights[:1], training)
    theirs = plain(weights[1:], lr=0.1, weight_decay=0.0, fused=False, **more)
    for step in range(3):
        for weight, optimizer in zip(weights, (ours, theirs), strict=True):
            weight.grad = torch.full_like(weight, 0.5 + step)
            optimizer.step()
    assert torch.equal(weights[0], weights[1])
    assert not (weights[0] == 1).any()
