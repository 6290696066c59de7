"""A hundred of the campaign's absurd inputs: each runs a tiny step or is refused in one clear message."""

import json
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import hypothesis
import pytest

import inputs
from inputs import COMMANDS, configs
from sandbox import Sandbox, unclear, without_rights
from swamp.cli import entry
from swamp.runs.config import RunConfig
from values import flat_fields


@pytest.mark.slow
def test_any_input_runs_a_step_or_is_refused_in_one_clear_message(tmp_path):
    """In a process of its own, as memory is limited there and a case may take the process with it."""
    command = [sys.executable, inputs.__file__, "--chunk", "0", "--cases", "120", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (file,) = tmp_path.glob("chunk-*.jsonl")
    lines = file.read_text().splitlines()
    wrong = [at for at, line in enumerate(lines) if json.loads(line).get("outcome", "ran") not in ("ran", "refused")]
    assert not wrong, "\n".join(line for at in wrong for line in lines[at - 1 : at + 1])
    assert done.returncode == 0, lines[-1] + done.stdout + done.stderr
    assert inputs.counted(file).total() == 120


def test_every_command_is_tried():
    assert COMMANDS.keys() == entry.COMMANDS.keys()


@pytest.mark.slow
def test_a_new_field_would_be_tried():
    """The strategies draw from the classes: every option of a run is drawn by itself sooner or later."""
    drawn: set[str] = set()

    class AllDrawn(Exception):  # noqa: N818
        pass

    @hypothesis.given(configs())
    @hypothesis.settings(
        max_examples=1500,
        database=None,
        phases=[hypothesis.Phase.generate],
        deadline=None,
        report_multiple_bugs=False,
    )
    @hypothesis.seed(0)
    def draw(found):
        drawn.update(found[1])
        if drawn >= flat_fields(RunConfig).keys():
            raise AllDrawn

    with suppress(AllDrawn):
        draw()
    assert drawn >= flat_fields(RunConfig).keys()


@pytest.mark.parametrize(
    ("work", "wrong"),
    [
        (lambda: Path("../tmp-beside").touch(), ""),
        (lambda: Path("../../beside").touch(), "wrote outside its directory"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: (_ for _ in ()).throw(SystemError()), "SystemError"),
    ],
)
def test_the_sandbox_sees_what_it_is_there_for(tmp_path, work, wrong):
    verdict = Sandbox(tmp_path / "box").call(work)
    assert wrong in verdict.message
    assert (verdict.outcome == "fault") == bool(wrong)


def test_without_rights_a_file_that_nobody_may_read_is_one(tmp_path):
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(0)
    with without_rights(), pytest.raises(PermissionError):
        path.read_text()


@pytest.mark.parametrize(
    "message", ["", "swamp: no", "Traceback (most recent call last): ...", "one thing\n\nand another thing"]
)
def test_a_message_that_does_not_help_is_noticed(message):
    assert unclear(message)
