"""What is measured of a model's weights."""

import pytest
import torch
from torch import nn

from swamp.algorithms.evaluator import Evaluator
from swamp.training import Task, with_reestimated_batchnorm
from swamp.training.average import copied


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
    scratch = measure.scratch.get()
    found = copied(measure.load(scratch, model.state_dict(), None, refresh_bn=True).state_dict())
    assert types == [of_statistics] * 2
    measure.error(scratch)
    assert types[2:] == [torch.float32]
    assert torch.allclose(found["1.running_mean"], exact["1.running_mean"], atol=1e-2)
    assert torch.equal(found["1.running_mean"], exact["1.running_mean"]) == (precision == "float32")
