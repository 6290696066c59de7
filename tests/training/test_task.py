import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from swamp.errors import SwampError
from swamp.training import Task, TensorData, evaluate, predict
from swamp.training.data import sampled
from swamp.training.metrics import accuracy, ece, nll
from swamp.training.streams import StreamData
from swamp.training.task import call_model

LOGITS = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0], [0.0, 0.5]])
TARGETS = torch.tensor([0, 1, 1, 0])


def test_accuracy_is_the_fraction_of_correct_predictions():
    assert accuracy(LOGITS, TARGETS) == 0.5


def test_nll_is_the_mean_negative_log_probability():
    gaps = [-2.0, -1.0, 2.0, 0.5]
    assert nll(LOGITS, TARGETS) == pytest.approx(sum(math.log1p(math.exp(g)) for g in gaps) / 4, rel=1e-14)


def ece_by_hand(logits: torch.Tensor, targets: torch.Tensor, bins: int) -> float:
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        total = sum(map(math.exp, row))
        confidence = math.exp(max(row)) / total
        place = next(b for b in range(bins) if confidence <= (b + 1) / bins)
        members[place].append((confidence, row.index(max(row)) == target))
    return sum(
        abs(sum(right for _, right in part) / len(part) - sum(c for c, _ in part) / len(part)) * len(part)
        for part in members
        if part
    ) / len(targets)


def test_ece_equals_a_loop_over_bins():
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(300, 4, generator=generator, dtype=torch.float64)
    chance = torch.randint(0, 4, (300,), generator=generator)
    # Underconfident at low confidence and overconfident elsewhere, so that bins do not cancel each other.
    targets = torch.where(logits.softmax(1).amax(1) < 0.5, logits.argmax(1), chance)
    for bins in (1, 2, 15):
        assert ece(logits, targets, bins) == pytest.approx(ece_by_hand(logits, targets, bins), rel=1e-12)


def test_ece_of_certain_answers_is_the_error():
    assert ece(1000 * LOGITS, TARGETS) == pytest.approx(0.5)


def test_a_task_without_accuracy_must_name_its_error():
    data = TensorData(torch.zeros(2, 1), torch.zeros(2))
    with pytest.raises(SwampError, match="must name its own error"):
        Task(data, data, metrics={}).error_of(LOGITS, TARGETS)
    assert Task(data, data, metrics={}, error=lambda outputs, targets: 0.25).error_of(LOGITS, TARGETS) == 0.25
    assert Task(data, data).error_of(LOGITS, TARGETS) == 0.5


def test_a_loss_that_was_not_created_is_refused():
    with pytest.raises(SwampError, match="the loss is the class MSELoss"):
        Task.of((LOGITS, LOGITS), (LOGITS, LOGITS), loss=nn.MSELoss)


def test_choices_are_made_on_validation_data_and_never_on_the_test():
    parts = [(torch.zeros(n, 1), torch.zeros(n)) for n in (1, 2, 3)]
    assert len(Task.of(*parts).held_out) == 3
    assert len(Task.of(*parts[:2]).held_out) == 1


def test_moving_a_task_moves_every_part_and_keeps_the_rest():
    data = TensorData({"x": torch.zeros(2, 1)}, torch.zeros(2))
    task = Task(data, data, data, error=lambda outputs, targets: 0.0)
    moved = task.to(torch.device("meta"))
    parts = [moved.train, moved.test, moved.validation]
    assert [(p.targets.device.type, p.inputs["x"].device.type) for p in parts] == [("meta", "meta")] * 3
    assert (moved.error, moved.loss) == (task.error, task.loss)
    assert task.to(torch.device("cpu")).train is data


def test_a_model_is_called_with_a_tensor_or_keywords_and_returns_logits():
    assert call_model(lambda x: x, 3) == 3
    assert call_model(lambda a, b: SimpleNamespace(logits=a - b), {"b": 1, "a": 3}) == 2


@pytest.mark.parametrize("examples", [None, 3, 4, 7, 99])
def test_predict_gives_some_examples_in_order(examples: int | None):
    inputs = torch.arange(10.0).view(10, 1)
    data = TensorData(inputs, torch.arange(10))
    outputs, targets = predict(Copy(), Task(data, data), data, examples=examples, batch_size=4)
    some = sampled(data, examples)
    assert torch.equal(outputs, some.inputs)
    assert targets.tolist() == some.targets.tolist() == sorted(set(some.targets.tolist()))
    assert len(targets) == min(10, examples or 10)


def test_an_evaluation_on_some_examples_reads_no_more_of_a_stream():
    model, read = nn.Linear(2, 2, bias=False), []
    nn.init.eye_(model.weight)

    def batches(seed: int):
        while True:
            read.append(2)
            yield LOGITS[1:3], TARGETS[1:3]  # one is classified correctly

    stream = StreamData(batches, steps_per_epoch=50, collate=None)
    task = Task(stream, TensorData(LOGITS, TARGETS), stream)
    assert task.evaluate(model, "train", 4).metrics["accuracy"] == 0.5
    assert read == [2, 2]
    assert task.error_on_held_out(model, 5) == 0.5
    assert read[2:] == [2, 2, 2]
    assert len([*sampled(stream, 5).in_order(2)]) == 3
    assert len([*sampled(stream, None).in_order(2)]) == len([*stream.in_order(2)]) == 50


class Copy(nn.Module):
    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        self.unused, self.drop, self.fail = nn.Linear(1, 1), nn.Dropout(0.9), fail

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not torch.is_grad_enabled()
        if self.fail:
            raise ZeroDivisionError
        return self.drop(x)


@pytest.mark.parametrize("fail", [False, True])
def test_evaluation_is_in_eval_mode_and_restores_the_mode_of_every_module(fail: bool, generators):
    model = Copy(fail).train()
    model.unused.eval()
    data = TensorData(torch.eye(2), torch.tensor([0, 1]))
    before = generators()
    if fail:
        with pytest.raises(ZeroDivisionError):
            evaluate(model, Task(data, data), data)
    else:
        assert evaluate(model, Task(data, data), data)["accuracy"] == 1
    assert (model.training, model.drop.training, model.unused.training) == (True, True, False)
    assert generators() == before
