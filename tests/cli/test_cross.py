"""swamp cross, masks and noise on runs of one second."""

import json
import os
import shutil
import signal

import pytest

from swamp.analysis.mask_training import TOLERANCE, MaskSource, mask_trainings, shared_densities
from swamp.runs.directory import read_json
from swamp.runs.run_progress import Reporter

from .command import swamp

TINY = [
    "digits-mlp",
    "--epochs",
    "2",
    "--model",
    "mlp-16",
    "--sparsity",
    "0.75",
    "--prune-fraction",
    "0.5",
    "--swa-fraction",
    "0.5",
]
TINY += ["--examples", "320", "--barrier-threshold", "1", "--device", "cpu", "--backend", "sequential", "--quiet"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for method in ("imp", "swamp"):
        for seed in (0, 1):
            out = folder / f"{method}-{seed}"
            more = ["--particles", "2", "--method", method, "--seed", seed, "--out", out]
            assert swamp("run", *TINY, *more) == 0
    return folder


def cell(found, **wanted):
    (one,) = [c for c in found["cells"] if all(c[name] == value for name, value in wanted.items())]
    return one


@pytest.mark.slow
def test_the_diagonal_holds_cycles_of_the_runs_and_other_cells_new_trainings(runs, tmp_path, capsys):
    every = [runs / name for name in ("imp-0", "imp-1", "swamp-0", "swamp-1")]
    assert swamp("cross", *every, "--out", tmp_path / "x", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["labels"] == ["imp", "swamp (2)"]
    assert [round(1 - d, 2) for d in found["densities"]] == [0.5, 0.75]
    for name, label in (("imp", "imp"), ("swamp", "swamp (2)")):
        own = [read_json(runs / f"{name}-{seed}" / "cycle-02" / "record.json")["test"]["accuracy"] for seed in (0, 1)]
        there = cell(found, split="test", masks=label, training=label, density=found["densities"][1])
        assert [there["seeds"]["0"], there["seeds"]["1"]] == own
    # Masks of IMP with the training of SWAMP: the mask equals that of IMP, and there are two particles.
    (folder,) = (tmp_path / "x").glob("seed0-masks-imp-*-training-swamp-*")
    record = read_json(folder / "cycle-02" / "record.json")
    assert record["digest"]["mask"] == read_json(runs / "imp-0" / "cycle-02" / "record.json")["digest"]["mask"]
    assert len(record["particles"]) == 2
    effects = [e for e in found["effects"] if (e["split"], e["what"], e["given"]) == ("test", "mask", "imp")]
    assert [e["difference"]["n"] for e in effects] == [2, 2]
    other = cell(found, split="test", masks="swamp (2)", training="imp", density=found["densities"][0])["seeds"]
    base = cell(found, split="test", masks="imp", training="imp", density=found["densities"][0])["seeds"]
    assert effects[0]["difference"]["mean"] == pytest.approx(sum(other[s] - base[s] for s in "01") / 2)
    for file in ("cross.json", "cross.md", "cross.png", "cross.svg"):
        assert (tmp_path / "x" / file).stat().st_size > 500
    assert "swamp cross" in (tmp_path / "x" / "cross.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
def test_cross_resumes_after_an_interruption_and_trains_nothing_twice(runs, tmp_path, capsys, monkeypatch):
    command = ["cross", runs / "imp-0", runs / "swamp-0", "--sparsities", "0.75", "--quiet", "--out"]
    assert swamp(*command, tmp_path / "whole") == 0
    once = Reporter.training

    def stopping(self, at):
        if (at.index, at.step) == (1, 3):
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Reporter, "training", stopping)
    assert swamp(*command, tmp_path / "part") == 130
    assert "To continue: swamp cross" in capsys.readouterr().err
    monkeypatch.setattr(Reporter, "training", once)
    assert swamp(*command, tmp_path / "part") == 0
    one, other = (json.loads((tmp_path / name / "cross.json").read_text()) for name in ("whole", "part"))
    assert one["cells"] == other["cells"]
    monkeypatch.setattr(Reporter, "training", lambda *_: pytest.fail("a finished cell was trained again"))
    assert swamp(*command, tmp_path / "part") == 0


@pytest.mark.slow
def test_runs_without_a_common_ticket_are_refused(runs, tmp_path, capsys):
    out = ["--out", tmp_path / "x", "--quiet"]
    assert swamp("cross", runs / "imp-0", runs / "swamp-1", *out) == 2
    assert "no seed has two runs" in capsys.readouterr().err
    later = tmp_path / "later"
    assert swamp("run", *TINY, "--ticket-epochs", "0.5", "--particles", "2", "--seed", "0", "--out", later) == 0
    assert swamp("cross", runs / "imp-0", later, *out) == 2
    assert "are different tickets" in capsys.readouterr().err
    carried = tmp_path / "lrr"
    assert swamp("run", *TINY, "--method", "lrr", "--seed", "0", "--out", carried) == 0
    assert swamp("cross", runs / "imp-0", carried, *out) == 2
    assert "does not train every cycle from one ticket" in capsys.readouterr().err
    assert swamp("cross", runs / "imp-0", runs / "swamp-0", "--sparsities", "0.6", *out) == 2
    assert "sparsity 0.6; all have 0.5, 0.75" in capsys.readouterr().err
    assert swamp("cross", runs / "imp-0", runs / "swamp-0", "--metric", "acuracy", *out) == 2
    assert not (tmp_path / "x").exists()


def test_sparsities_match_only_within_the_tolerance(runs):
    sides = {0: {name: MaskSource.open(runs / f"{name}-0") for name in ("imp", "swamp")}}
    own = sides[0]["imp"].records[1]["density"]["prunable"]
    assert sides[0]["swamp"].at(own * (1 + 0.9 * TOLERANCE))["cycle"] == 1
    assert sides[0]["swamp"].at(own * (1 + 2 * TOLERANCE)) is None
    rows = shared_densities(sides, [1 - own])
    assert [(p.masks, p.training, dict(p.cycles)) for p in mask_trainings(sides, rows)] == [
        ("imp", "swamp", {1: 1}),
        ("swamp", "imp", {1: 1}),
    ]


@pytest.mark.slow
def test_masks_of_all_pairs_of_runs_are_compared(runs, tmp_path, capsys):
    capsys.readouterr()
    every = [runs / name for name in ("imp-0", "imp-1", "swamp-0")]
    assert swamp("masks", *every, "--out", tmp_path / "m", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    pairs = {(pair["a"], pair["b"], *pair["seeds"]) for pair in found["pairs"]}
    assert pairs == {("imp", "imp", 0, 1), ("imp", "swamp (2)", 0, 0), ("imp", "swamp (2)", 1, 0)}
    text = (tmp_path / "m" / "masks.md").read_text()
    assert "imp<br>and swamp (2),<br>same seed" in text
    for file in found["files"]:
        assert os.path.getsize(file) > 500
    assert swamp("masks", runs / "imp-0", "--out", tmp_path / "m") == 2
    assert swamp("masks", *every, "--sparsities", "0.6", "--out", tmp_path / "m") == 2
    assert "all have 0.5, 0.75" in capsys.readouterr().err


def test_noise_is_computed_once_and_printed(runs, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(runs / "swamp-0", run)
    command = [
        "noise",
        run,
        "--particles",
        "2",
        "--examples",
        "64",
        "--points",
        "3",
        "--only",
        "rate",
        "none",
        "dropout",
    ]
    assert swamp(*command) == 0
    out = capsys.readouterr().out
    assert "dropout: skipped, its network draws no random numbers." in out
    assert "Cycle 2, 75." in out
    before = (run / "analysis.jsonl").read_bytes()
    assert swamp(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)["factors"]
    assert list(found) == ["none", "dropout", "rate"]
    assert found["none"]["mean_distance"] == 0 < found["rate"]["mean_distance"]
    assert (run / "analysis.jsonl").read_bytes() == before
    assert swamp("figure", run, "--which", "noise", "-o", tmp_path / "noise.svg") == 0
    for wrong in (["--only", "ordre"], ["--cycle", "9"], ["--particles", "1"], ["--lr-spread", "2"]):
        assert swamp("noise", run, *wrong) == 2
    assert "Did you mean order" in capsys.readouterr().err
