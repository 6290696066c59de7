"""Run directories of every format that there was are read and gone on with; those of formats to come are refused."""

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from swamp.cli import main
from swamp.errors import SwampError
from swamp.files import load_tensors, save_tensors
from swamp.report import read_run
from swamp.runs import open_run, read_cycle, read_particle, read_ticket
from swamp.runs.seal import VERSION, sealed, unsealed

from .conftest import go_on

DATA = Path(__file__).parents[1] / "data"
FORMATS = sorted(path.name for path in DATA.iterdir() if path.is_dir())


@pytest.fixture(params=FORMATS)
def runs(request, tmp_path) -> Path:
    """A copy of the finished and the unfinished run of a format."""
    return shutil.copytree(DATA / request.param, tmp_path / "runs")


def test_a_finished_run_of_every_format_is_read_by_every_command(runs, tmp_path, capsys):
    run = runs / "finished"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    main(["compare", str(run), "--out", str(tmp_path / "compare"), "--json"])
    assert len(json.loads(capsys.readouterr().out)["rows"]) == 2
    main(["report", str(run), "-o", str(tmp_path / "report.html"), "--json"])
    main(["export", str(run), "-o", str(tmp_path / "x.safetensors"), "--json"])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    only = ["--only", "barriers", "masks", "--points", "2", "--examples", "50"]
    main(["analyze", str(run), *only, "--quiet", "--json"])
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert done["made"]
    assert not done["skipped"]


def test_a_finished_run_of_every_format_is_finished(runs):
    before = (runs / "finished" / "metrics.jsonl").read_bytes()
    done = go_on(runs / "finished")
    assert (runs / "finished" / "metrics.jsonl").read_bytes() == before
    first, last = read_run(runs / "finished").cycles
    assert [cycle["test"] for cycle in done["cycles"]] == [first["test"], last["test"]]
    assert done["cycles"][1]["total"]["steps"] == last["total"]["steps"] == first["steps"] + last["steps"]


def test_an_unfinished_run_of_every_format_goes_on_where_it_was(runs):
    run, finished = open_run(runs / "unfinished")[0], open_run(runs / "finished")[0]
    kept = {path: path.read_bytes() for path in (run.ticket, run.record(0), run.particle(1, 0))}
    snapshot = load_tensors(run.snapshot(1, 1))[1]
    # Snapshots of the first version are not read: such a training begins again, and says so.
    first = pytest.warns(UserWarning, match="unfinished-1.* version of swamp .* this training begins again")
    with nullcontext() if "numbers" in snapshot else first:
        go_on(run.path)
    assert {path: path.read_bytes() for path in kept} == kept
    assert not run.snapshot(1, 1).exists()
    # Another machine than the files were made on rounds in another way.
    one, two = read_cycle(run, 1), read_cycle(finished, 1)
    assert one.sparsity == two.sparsity == 0.5
    assert one.measured.test["nll"] == pytest.approx(two.measured.test["nll"], abs=1e-3)
    assert len(one.particles) == len(two.particles) == 2


def test_a_file_of_a_later_version_is_refused_saying_to_upgrade(runs):
    run, _ = open_run(runs / "finished")
    upgrade = r"was written by a newer version of swamp .*pip install --upgrade swamp"
    for path, read in ((run.particle(0, 0), lambda: read_particle(run, 0, 0)), (run.ticket, lambda: read_ticket(run))):
        tensors, metadata = load_tensors(path)
        save_tensors(path, tensors, {**metadata, "format": metadata["format"].replace("-1", "-2")})
        with pytest.raises(SwampError, match=upgrade):
            read()
    values, seal = unsealed(json.loads(run.original.read_text()), "")
    later = {**values, "an_option_to_come": 1}
    text = json.dumps(sealed(later, {**seal, "version": VERSION + 1}))
    run.original.write_text(text)
    run.config.write_text(json.dumps(later))
    for read in (go_on, read_run):
        with pytest.raises(SwampError, match=rf"\.config\.json {upgrade}"):
            read(run.path)


def test_the_format_that_is_written_now_is_among_those_that_are_kept(tmp_path):
    _, seal = unsealed(json.loads((DATA / f"format-{VERSION}" / "finished" / ".config.json").read_text()), "")
    assert seal["version"] == VERSION
