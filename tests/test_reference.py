"""The site builds without a warning, and its reference has every public name."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import swamp

ROOT = Path(__file__).parent.parent


# A name that a submodule shares had no anchor: the reference showed the module in its place.
@pytest.mark.slow
def test_the_site_builds_strictly_and_its_reference_has_an_anchor_for_every_public_name(tmp_path):
    # Strict: a link to a missing page or heading, or a name that does not exist, fails the build.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    built = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stdout + built.stderr
    anchors = set(re.findall(r'id="([^"]+)"', (tmp_path / "reference" / "index.html").read_text()))
    assert [name for name in swamp.__all__ if f"swamp.{name}" not in anchors] == []
