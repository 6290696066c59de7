"""Predictions, computed by hand on a few examples, and on a run by evaluating its models one by one."""

import shutil
from dataclasses import replace

import pytest
import torch
from torch import nn

from swamp.algorithms import ensemble_predict
from swamp.analysis import ANALYSES
from swamp.analysis.analysis_tasks import AnalysisSettings
from swamp.analysis.predictions import (
    EvaluationInputs,
    add_noise,
    box_blur,
    compare_predictions,
    corrupt,
    corruption_unsupported_reason,
    disagreement,
    models_of_cycle,
    predictions_of_cycle,
    reduce_contrast,
    robustness,
    standard_deviation,
)
from swamp.analysis.run_data import RunData, some_examples
from swamp.training import Seed, Task, TensorData, evaluate
from swamp.training.data import BatchList, sampled
from swamp.training.metrics import mean_probability

from .runs import blind, records_of, run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(tmp_path_factory.mktemp("predictions") / "run", 3)


class Predicts(nn.Module):
    """Predicts the given one of two classes for each example, with the given confidence."""

    def __init__(self, *classes: int, sure: float = 0.8):
        super().__init__()
        logits = torch.full((len(classes), 2), 1 - sure).scatter_(1, torch.tensor(classes)[:, None], sure).log()
        self.logits = nn.Parameter(logits)

    def forward(self, inputs):
        return self.logits[inputs[:, 0].long()]


def numbered(targets) -> Task:
    data = TensorData(torch.arange(float(len(targets)))[:, None], torch.tensor(targets))
    return Task(data, data, data)


def test_disagreement_ensemble_and_agreement_by_hand():
    task = numbered([0, 0, 1, 1])
    mean, particles = (
        Predicts(0, 1, 1, 0),
        [Predicts(0, 0, 1, 1), Predicts(0, 1, 1, 0, sure=0.65), Predicts(1, 1, 1, 1, sure=0.7)],
    )
    found = compare_predictions(mean, particles, task, task.held_out)
    assert found["disagreement"] == [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    assert [one["accuracy"] for one in found["particles"]] == [1, 0.5, 0.5]
    # Class 0 has 0.8 + 0.65 + 0.3, 0.8 + 0.35 + 0.3, 0.2 + 0.35 + 0.3 and 0.2 + 0.65 + 0.3, of 3.
    share = torch.tensor([1.75, 1.45, 0.85, 1.15]).double() / 3
    assert found["ensemble"]["nll"] == pytest.approx(float(-torch.cat([share[:2], 1 - share[2:]]).log().mean()))
    assert found["mean"]["accuracy"] == 0.5
    assert found["mean"]["ece"] == pytest.approx(0.8 - 0.5)
    # The ensemble predicts 0 1 1 1.
    assert found["agreement_of_mean_with_ensemble"] == 0.75


def test_the_ensemble_averages_probabilities_and_not_logits():
    found = mean_probability([torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.2, 0.8]]).log()])
    torch.testing.assert_close(found.exp(), torch.tensor([[0.55, 0.45]], dtype=torch.float64))


def test_disagreement_counts_classes_and_not_outputs():
    found = disagreement([torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[9.0, 3.0], [2.0, 1.0]])])
    assert found.tolist() == [[0, 0.5], [0.5, 0]]


def test_only_the_given_number_of_examples_is_taken():
    data = TensorData({"a": torch.arange(700)}, torch.arange(700))
    for count in (3, 300, 600, 700, 9000):
        batches = some_examples(data, count, 512)
        assert torch.cat([targets for _, targets in batches]).tolist() == sampled(data, count).targets.tolist()
        assert all(torch.equal(inputs["a"], targets) for inputs, targets in batches)


def test_predictions_of_a_cycle_agree_with_its_record(finished):
    run_data = blind(RunData.open(finished))
    found = predictions_of_cycle(run_data, 1, EvaluationInputs(run_data.task.held_out, AnalysisSettings()))
    cycle = run_data.cycle(1)
    assert found["data"] == "validation"
    for name in ("accuracy", "nll", "ece"):
        # The run evaluated the same models on the same examples.
        assert found["mean"][name] == pytest.approx(cycle.metrics.validation[name], rel=1e-5)
        for one, particle in zip(found["particles"], cycle.particles, strict=True):
            assert one[name] == pytest.approx(particle.metrics.validation[name], rel=1e-5)
    _, particles = models_of_cycle(run_data, 1, 2000)
    states = [model.state_dict() for model in particles]
    together = ensemble_predict(states, run_data.model, run_data.task, run_data.task.validation)
    for name, metric in run_data.task.metrics.items():
        assert found["ensemble"][name] == pytest.approx(metric(*together), rel=1e-6)
    kinds = {kind: [row["severity"] for row in rows] for kind, rows in found["corruptions"].items()}
    assert kinds == {"noise": [0.25, 0.5, 1, 2], "blur": [3, 5, 7], "contrast": [0.25, 0.5, 0.75]}
    data = corrupt(BatchList(some_examples(run_data.task.validation, 2000, 512)), "blur", 3, Seed(0))
    accuracies = [evaluate(model, run_data.task, data)["accuracy"] for model in particles]
    assert found["corruptions"]["blur"][0]["particle"] == pytest.approx(sum(accuracies) / 3)
    assert min(row["mean"] for row in found["corruptions"]["noise"]) < found["mean"]["accuracy"]


def test_noise_has_the_given_scale_and_is_equal_for_all_models():
    inputs = 3 * torch.randn(2, 500, 40, generator=torch.Generator().manual_seed(0)) + 7
    data = BatchList([(inputs[0], torch.zeros(500)), (inputs[1], torch.zeros(500))])
    deviation = standard_deviation([inputs[0], inputs[1]])
    assert deviation == pytest.approx(float(inputs.double().std(correction=0)), rel=1e-6)
    weak, again, strong = (list(corrupt(data, "noise", s, Seed(0)).in_order(1)) for s in (0.5, 0.5, 1.0))
    noise = torch.stack([weak[n][0] - inputs[n] for n in range(2)])
    assert float(noise.std()) == pytest.approx(0.5 * deviation, rel=0.01)
    assert float((noise[0] * noise[1]).mean()) == pytest.approx(0, abs=0.05)  # batches have independent noise
    assert all(torch.equal(a[0], b[0]) for a, b in zip(weak, again, strict=True))
    torch.testing.assert_close(strong[0][0] - inputs[0], 2 * noise[0], rtol=1e-3, atol=1e-4)
    other = list(corrupt(data, "noise", 0.5, Seed(1)).in_order(1))
    assert not torch.equal(other[0][0], weak[0][0])
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    assert torch.equal(add_noise(inputs, 1.0, generators[0]), add_noise(inputs, 1.0, generators[1]))


def test_blur_is_the_mean_of_neighbours_and_repeats_the_edges():
    signal = torch.tensor([[3.0, 3.0, 6.0, 0.0]])
    torch.testing.assert_close(box_blur(signal, 3), torch.tensor([[3.0, 4.0, 3.0, 2.0]]))
    image = torch.zeros(1, 2, 5, 5)
    image[0, 1, 2, 2] = 9
    expected = torch.zeros(1, 2, 5, 5)
    expected[0, 1, 1:4, 1:4] = 1
    torch.testing.assert_close(box_blur(image, 3), expected)
    torch.testing.assert_close(box_blur(image[:, 1], 3), expected[:, 1])
    torch.testing.assert_close(box_blur(torch.full((2, 3), 5.0), 7), torch.full((2, 3), 5.0))


def test_reduced_contrast_moves_each_example_to_its_mean():
    inputs = torch.tensor([[0.0, 4.0], [10.0, 20.0]])
    torch.testing.assert_close(reduce_contrast(inputs, 0.5), torch.tensor([[1.0, 3.0], [12.5, 17.5]]))
    torch.testing.assert_close(reduce_contrast(inputs, 1.0), torch.tensor([[2.0, 2.0], [15.0, 15.0]]))


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"ids": torch.zeros(2, 3)}, "a dict, not a tensor"),
        ((torch.zeros(2, 3), torch.zeros(2, 3)), "a tuple, not a tensor"),
        (torch.zeros(2, 3, dtype=torch.long), "torch.int64"),
        (torch.zeros(2, 1, 2, 3, 4), "(1, 2, 3, 4) is not a signal"),
        (torch.zeros(2), "() is not a signal"),
    ],
)
def test_inputs_that_cannot_be_corrupted_are_skipped_with_the_reason(inputs, reason):
    assert reason in corruption_unsupported_reason(inputs)
    data = BatchList([(inputs, torch.zeros(2))])
    assert reason in robustness(None, [], numbered([0, 1]), EvaluationInputs(data, AnalysisSettings()))["skipped"]


def test_a_task_without_classes_is_skipped_with_the_reason(finished):
    run_data = RunData.open(finished)
    data = TensorData(run_data.task.validation.inputs, torch.rand(len(run_data.task.validation)))
    normalised = replace(data, normalise=run_data.task.validation.normalise)
    regression = replace(run_data, task=replace(run_data.task, validation=normalised))
    assert (
        "not a classification"
        in predictions_of_cycle(regression, 0, EvaluationInputs(regression.task.held_out, AnalysisSettings()))[
            "skipped"
        ]
    )


def test_without_particles_only_the_mean_is_evaluated(tmp_path):
    run_data = RunData.open(run(tmp_path / "run", keep_checkpoints="means", sparsity=0.5))
    found = predictions_of_cycle(run_data, 1, EvaluationInputs(run_data.task.held_out, AnalysisSettings()))
    assert found["mean"]["accuracy"] > 0
    assert (found["disagreement"], found["particles"], found["ensemble"]) == ([], [], None)
    assert found["agreement_of_mean_with_ensemble"] is None
    row = found["corruptions"]["blur"][0]
    assert (row["particle"], row["ensemble"]) == (None, None)
    assert row["mean"] > 0


def test_one_particle_that_was_not_averaged_keeps_its_own_statistics(tmp_path):
    run_data = RunData.open(run(tmp_path / "run", method="imp", sparsity=0.5))
    found = predictions_of_cycle(run_data, 1, EvaluationInputs(run_data.task.held_out, AnalysisSettings()))
    assert found["mean"] == found["particles"][0] == pytest.approx(run_data.cycle(1).metrics.validation, rel=1e-5)


def test_the_particles_of_an_ensemble_are_its_members(tmp_path):
    run_data = RunData.open(run(tmp_path / "run", 2, method="imp-ensemble", sparsity=0.5))
    found = predictions_of_cycle(run_data, 1, EvaluationInputs(run_data.task.held_out, AnalysisSettings()))
    assert found["mean"] is None
    assert found["ensemble"] == pytest.approx(run_data.cycle(1).metrics.validation, rel=1e-5)
    assert found["disagreement"][0][1] > 0


def test_tasks_are_computed_once_and_reproducible(finished, tmp_path):
    paths = [tmp_path / name for name in ("one", "two")]
    for path in paths:
        shutil.copytree(finished, path)
    analysis = ANALYSES["predictions"]
    one, two = (list(records_of(RunData.open(path), analysis, AnalysisSettings(examples=100))) for path in paths)
    assert one == two
    assert [line["key"] for line in one] == [f"predictions/cycle-0{n}" for n in range(3)]
    for file in paths[0].rglob("particle-*.safetensors"):
        file.unlink()  # not needed by tasks that are computed
    assert list(records_of(RunData.open(paths[0]), analysis, AnalysisSettings(examples=100))) == one
