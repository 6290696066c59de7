"""Files of a newer format are refused with one clear line; files without a format are named as damaged."""

import json
import shutil

import pytest

from swamp.errors import CorruptFile, SwampError
from swamp.files import load_tensors, save_tensors
from swamp.report.run_records import read_run
from swamp.runs import directory as directories
from swamp.runs import open_run, read_cycle, read_ticket
from swamp.runs.directory import FORMAT, PROVENANCE, write_json
from swamp.runs.read import read_particle, write_config

from .conftest import go_on

UPGRADE = r"was written by a newer version of swamp .*pip install --upgrade swamp"


@pytest.fixture
def run(finished, tmp_path):
    """A copy of a finished run."""
    return open_run(shutil.copytree(finished[0], tmp_path / "run"))[0]


def test_every_json_file_states_format_1(finished):
    files = [file for file in finished[0].rglob("*.json*") if file.name != "environment.json"]
    assert len(files) > 5
    for file in files:
        lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
        assert {json.loads(line)[PROVENANCE]["format"] for line in lines} == {FORMAT} == {1}


def test_a_tensor_file_of_a_newer_format_is_refused_saying_to_upgrade(run):
    for path, read in ((run.particle(0, 0), lambda: read_particle(run, 0, 0)), (run.ticket, lambda: read_ticket(run))):
        tensors, metadata = load_tensors(path)
        save_tensors(path, tensors, {**metadata, "format": metadata["format"].replace("-1", "-2")})
        with pytest.raises(SwampError, match=UPGRADE):
            read()


def test_a_run_of_a_newer_format_is_refused_saying_to_upgrade(run, monkeypatch):
    config = open_run(run.path)[1]
    with monkeypatch.context() as newer:
        newer.setattr(directories, "FORMAT", FORMAT + 1)
        write_config(run, config)
    values = json.loads(run.config.read_text())
    write_json(run.config, {**values, "future_option": 1})
    for read in (go_on, read_run):
        with pytest.raises(SwampError, match=rf"config\.json {UPGRADE}"):
            read(run.path)


def test_a_file_that_states_no_run_or_no_checksum_is_named(run):
    tensors, metadata = load_tensors(run.ticket)
    save_tensors(run.ticket, tensors, {name: text for name, text in metadata.items() if name != "run"})
    with pytest.raises(CorruptFile, match=r"ticket\.safetensors is not a file of a run: the entry 'run' is missing"):
        read_ticket(run)
    record = json.loads(run.record(1).read_text())
    del record[PROVENANCE]
    write_json(run.record(1), record)
    with pytest.raises(CorruptFile, match=r"record\.json is damaged: it does not match its checksum"):
        read_cycle(run, 1)
