"""A few hundred of the campaign's absurd inputs: each runs a tiny step or is refused in one clear message."""

import resource
from pathlib import Path

import hypothesis
import pytest

from inputs import COMMANDS, Case, attempt, built, cases, configs
from sandbox import Sandbox, limit_memory, unclear, without_rights
from swamp.cli.entry import _COMMANDS
from swamp.runs import RunConfig
from values import flat_fields


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory):
    before = resource.getrlimit(resource.RLIMIT_AS)
    found = built(tmp_path_factory.mktemp("inputs"))
    limit_memory()
    yield found
    resource.setrlimit(resource.RLIMIT_AS, before)
    (found.zoo / "closed").chmod(0o700)


@pytest.mark.filterwarnings("default")  # a case may warn its user
@hypothesis.given(case=cases())
@hypothesis.settings(
    max_examples=500, derandomize=True, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
def test_any_input_runs_a_step_or_is_refused_in_one_clear_message(sandbox: Sandbox, case: Case):
    verdict = attempt(sandbox, case)
    assert verdict.outcome in ("ran", "refused"), verdict.message


def test_every_command_is_tried():
    assert COMMANDS.keys() == _COMMANDS.keys()


def test_a_new_field_would_be_tried():
    """The strategies draw from the classes: every option of a run is drawn by itself sooner or later."""
    drawn: set[str] = set()

    @hypothesis.given(configs())
    @hypothesis.settings(max_examples=1500, database=None, phases=[hypothesis.Phase.generate], deadline=None)
    @hypothesis.seed(0)
    def draw(found):
        drawn.update(found[1])

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
