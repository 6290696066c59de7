"""The version is written in one place, and every file that repeats it agrees."""

import re
from pathlib import Path

import swamp

ROOT = Path(__file__).parent.parent


def test_citation_and_changelog_have_the_version():
    assert f"version: {swamp.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.search(
        rf"^## {re.escape(swamp.__version__)} \(\d{{4}}-\d\d-\d\d\)$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert not re.search(r"^version = ", (ROOT / "pyproject.toml").read_text(), re.M)


def test_the_workflow_of_github_runs_what_the_local_ci_runs():
    assert "run: .ci/run\n" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
