"""Tables of scikit-learn, .ts files, and the networks for series."""

from pathlib import Path

import pytest
import torch

from swamp.datasets import build_network, build_problem, time_series
from swamp.datasets.problem import DataOptions
from swamp.errors import SwampError
from swamp.masks import Mask
from swamp.training.data import TensorData
from swamp.training.rng import Seed

HEADER = "# a comment\n@problemName two\n@timeStamps false\n@univariate false\n@classLabel true left right\n@data\n"


@pytest.mark.parametrize(
    ("task", "rows", "features", "outputs"),
    [("breast-cancer", (456, 113), 30, 2), ("wine", (143, 35), 13, 3), ("diabetes", (354, 88), 10, 1)],
)
def test_tables_are_standardised_by_their_training_examples(task, rows, features, outputs):
    problem = build_problem(task, "mlp-8", DataOptions(validation=0), Seed(3))
    assert (len(problem.task.train), len(problem.task.test)) == rows
    assert (problem.shape, problem.classes) == ((features,), outputs)
    inputs, targets = next(iter(problem.task.train.in_order(1000)))
    assert inputs.mean(0).abs().max() < 1e-4
    assert (inputs.std(0, correction=0) - 1).abs().max() < 1e-4
    held_out = next(iter(problem.task.test.in_order(1000)))[0]
    assert held_out.mean(0).abs().max() > 1e-2
    if outputs == 1:
        assert abs(float(targets.mean())) < 0.2
        assert abs(float(targets.std()) - 1) < 0.1


def test_the_test_rows_do_not_depend_on_the_seed():
    one, two = (build_problem("wine", "mlp-8", DataOptions(), Seed(seed)).task.test for seed in (0, 1))
    assert isinstance(one, TensorData)
    assert isinstance(two, TensorData)
    assert torch.equal(one.inputs, two.inputs)


def files(folder: Path, train: str, test: str = "1,2,3:4,5,6:right\n7,8,9:1,2,3:left\n") -> Path:
    folder.mkdir(exist_ok=True)
    for part, text in (("TRAIN", train), ("TEST", test)):
        (folder / f"Two_{part}.ts").write_text(HEADER + text)
    return folder


def test_series_have_their_channels_first_and_each_channel_is_standardised(tmp_path):
    rows = "".join(f"{n},{n + 1},{n + 5}:{10 * n},0,{n}:{('left', 'right')[n % 2]}\n" for n in range(12))
    folder = files(tmp_path / "data", rows)
    problem = build_problem("series", "lstm-4", DataOptions(str(folder), validation=0), Seed(0))
    assert (problem.shape, problem.classes) == ((2, 3), 2)
    inputs, targets = next(iter(problem.task.train.in_order(20)))
    assert inputs.mean((0, 2)).abs().max() < 1e-5
    assert (inputs.std((0, 2), correction=0) - 1).abs().max() < 1e-5
    assert sorted(targets.tolist()) == [0] * 6 + [1] * 6
    # The test has the scale of the training examples: in both, 1 and 2 differ by the same number.
    test = next(iter(problem.task.test.in_order(20)))[0]
    assert torch.allclose(test[0, 0, 1] - test[0, 0, 0], inputs[1, 0, 1] - inputs[1, 0, 0])
    one = build_problem("italy-power-demand", "lstm-4", DataOptions(str(folder), validation=0), Seed(0))
    assert one.shape == (2, 3)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ("1,2,3:4,5,6:left\n1,2:4,5:right\n", "line 8: the series has another length"),
        ("1,2,3:4,5:left\n", "line 7: the series has another length"),
        ("1,?,3:4,5,6:left\n", r"line 7: the series '1,\?,3' ... has a value that is missing"),
        ("1,NaN,3:4,5,6:left\n", "line 7: the series"),
        ("", "has no series after a line @data"),
        ("1,2:4,5:left\n3,4:5,6:right\n" * 4, "the series of the splits differ in shape"),
        ("1,2,3:4,5,6:left\n" * 8, "no example of the classes right"),
    ],
)
def test_series_that_cannot_be_used_are_refused_with_the_line(tmp_path, train, message):
    with pytest.raises(SwampError, match=message):
        build_problem("series", "lstm-4", DataOptions(str(files(tmp_path / "data", train))), Seed(0))


def test_missing_files_say_where_they_come_from(tmp_path, monkeypatch):
    with pytest.raises(SwampError, match=r"one NAME_TEST[.]ts, and has neither"):
        build_problem("series", "lstm-4", DataOptions(str(tmp_path)), Seed(0))
    with pytest.raises(SwampError, match="name your folder or file"):
        build_problem("series", "lstm-4", DataOptions(), Seed(0))
    monkeypatch.setattr(time_series.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SwampError, match="pip install --no-deps aeon"):
        build_problem("basic-motions", "lstm-4", DataOptions(), Seed(0))
    (tmp_path / "stamped.ts").write_text("@timestamps true\n@data\n(0,1),(1,2):a\n")
    with pytest.raises(SwampError, match="without time stamps"):
        build_problem("series", "lstm-4", DataOptions(str(tmp_path / "stamped.ts")), Seed(0))


@pytest.mark.parametrize("name", ["lstm-8", "lstm-8-2", "tcn-8-3"])
@pytest.mark.parametrize("shape", [(12,), (3, 12)])
def test_networks_for_series_take_signals_and_channels_and_are_pruned(name, shape):
    network = build_network(name, shape, 5)
    assert network(torch.randn(4, *shape)).shape == (4, 5)
    pruned = Mask.ones(network)
    matrices = [one for one, value in network.named_parameters() if value.dim() > 1]
    assert list(pruned) == matrices


def test_the_sizes_of_networks_for_series():
    # 4 gates with two biases each, and a head.
    assert (
        sum(one.numel() for one in build_network("lstm-8", (3, 12), 5).parameters()) == 4 * 8 * (3 + 8 + 2) + 8 * 5 + 5
    )
    tcn = build_network("tcn-8-2", (3, 12), 5)
    blocks = 3 * 3 * 8 + 3 * 8 * 8 + 3 * 8 + 2 * 3 * 8 * 8 + 4 * 2 * 8
    assert sum(one.numel() for one in tcn.parameters()) == blocks + 8 * 5 + 5


def test_a_temporal_network_sees_no_later_step():
    blocks = build_network("tcn-8-3", (2, 20), 5).eval().blocks
    inputs = torch.randn(1, 2, 20)
    changed = inputs.clone()
    changed[..., 15:] += 1
    before, after = blocks(inputs), blocks(changed)
    assert torch.equal(before[..., :15], after[..., :15])
    assert not torch.equal(before[..., 15], after[..., 15])


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("lstm-8", (1, 28, 28), "takes series"),
        ("tcn-8-3", (1, 28, 28), "takes series"),
        ("tcn-8-0", (12,), "from 1 to 16 blocks"),
        ("lstm-0", (12,), "at least one unit"),
    ],
)
def test_series_networks_that_cannot_be_built_are_refused(name, shape, message):
    with pytest.raises(SwampError, match=message):
        build_network(name, shape, 5)
