"""What is measured of a model's weights."""

import pytest
import torch
from torch import nn

from swamp.algorithms.evaluator import Evaluator
from swamp.masks import Mask
from swamp.training import Seed, Task, with_reestimated_batchnorm
from swamp.training.average import copied
from swamp.training.rng import isolated


@pytest.mark.parametrize(("precision", "of_statistics"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_statistics_are_made_as_training_makes_them_and_outputs_are_measured_in_float32(precision, of_statistics):
    types: list[torch.dtype] = []
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(600, 4, generator=generator), torch.randint(0, 3, (600,), generator=generator)
    task = Task.of(data, data)
    exact = with_reestimated_batchnorm(model, task.train).state_dict()
    model[0].register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    measure = Evaluator(model, task, 100, precision)
    types.clear()
    scratch = measure.scratch.get()
    found = copied(measure.load(scratch, model.state_dict(), None, refresh_bn=True).state_dict())
    assert types == [of_statistics] * 2
    measure.error(scratch)
    assert types[2:] == [torch.float32]
    assert torch.allclose(found["1.running_mean"], exact["1.running_mean"], atol=1e-2)
    assert torch.equal(found["1.running_mean"], exact["1.running_mean"]) == (precision == "float32")


class Noisy(nn.Module):
    """Draws random numbers in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.net(inputs + torch.randn_like(inputs))


@pytest.mark.parametrize("kind", [Noisy, lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))])
def test_evaluations_depend_on_no_global_generator_and_move_none(kind, monkeypatch):
    monkeypatch.setattr("swamp.algorithms.evaluator.cores", lambda: 4 * torch.get_num_threads())
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(64, 4, generator=generator), torch.randint(0, 3, (64,), generator=generator)
    task, model = Task.of(data, data), kind()
    found = []
    for seed in (1, 2):
        evaluator = Evaluator(model, task, 64)
        assert evaluator.workers == (1 if isinstance(model, Noisy) else 4)
        with isolated(Seed(seed)):
            before = torch.get_rng_state()
            mask = Mask({})
            found += evaluator.map(
                lambda scratch, weights, evaluator=evaluator, mask=mask: evaluator.evaluate(
                    scratch, weights, mask, refresh_bn=True, with_error=True
                ),
                [model.state_dict()] * 8,
            )
            assert torch.equal(before, torch.get_rng_state())
    assert all(one.metrics == found[0].metrics for one in found)
    assert all(torch.equal(one.state[name], value) for one in found for name, value in found[0].state.items())
