"""The site builds without a warning, and its reference has every public name."""

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import swamp

ROOT = Path(__file__).parent.parent
PACKAGES = re.findall(r"^::: (swamp\.\w+)$", (ROOT / "docs" / "packages.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    # Strict: a link to a missing page or heading, or a name that does not exist, fails the build.
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def anchors(page: Path) -> set[str]:
    return set(re.findall(r'id="([^"]+)"', page.read_text()))


@pytest.mark.slow
def test_the_reference_has_an_anchor_for_every_public_name(site):
    found = anchors(site / "reference" / "index.html")
    assert [name for name in swamp.__all__ if f"swamp.{name}" not in found] == []


@pytest.mark.slow
def test_the_page_of_packages_has_an_anchor_for_every_public_name(site):
    found = anchors(site / "packages" / "index.html")
    names = [(package, name) for package in PACKAGES for name in import_module(package).__all__]
    assert len(names) > 100
    # A function in a module with its own name is listed by the module's path.
    assert [
        f"{package}.{name}" for package, name in names if not {f"{package}.{name}", f"{package}.{name}.{name}"} & found
    ] == []
