"""The site builds without a warning; its reference has every public name, every command and every option."""

import os
import re
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import swamp
from swamp.cli import main
from swamp.cli.entry import COMMANDS

ROOT = Path(__file__).parent.parent
HOOKS = runpy.run_path(str(ROOT / "docs" / "hooks.py"))
PACKAGES = sorted(f"swamp.{path.parent.name}" for path in (ROOT / "src" / "swamp").glob("*/__init__.py"))


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


def public_names() -> list[str]:
    """The path of each public name; the shortest path of an object that has several."""
    found = {id(getattr(swamp, name)): f"swamp.{name}" for name in swamp.__all__}
    for package in PACKAGES:
        room = import_module(package)
        for name in getattr(room, "__all__", ()):
            found.setdefault(id(getattr(room, name)), f"{package}.{name}")
    return list(found.values())


@pytest.mark.slow
def test_the_reference_has_an_anchor_for_every_public_name(site):
    found = set[str]().union(*map(anchors, (site / "reference" / "api").glob("*/index.html")))
    assert [name for name in public_names() if name not in found] == []


@pytest.mark.slow
def test_the_examples_of_docstrings_are_code(site):
    pages = [page.read_text() for page in (site / "reference" / "api").glob("*/index.html")]
    # As text, their prompts would be nested quotations.
    assert not any("<blockquote" in page for page in pages)
    assert sum(page.count('<span class="gp">&gt;&gt;&gt; </span>') for page in pages) > 100


@pytest.mark.slow
def test_options_stay_on_one_line_and_wide_pictures_are_marked(site):
    assert (
        '<code><span class="option">--snapshot-seconds</span></code>' in (site / "howto/resume/index.html").read_text()
    )
    figures = (site / "reference/figures/index.html").read_text()
    assert re.search(r'<img class="wide" [^>]*barrier.png', figures)
    assert re.search(r"<img alt[^>]*accuracy.png", figures)


@pytest.fixture(scope="module")
def sections():
    """Command -> its part of the page of commands."""
    parts = re.split(r"^## swamp (\w+)$", "\n".join(HOOKS["commands"]()), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def flags(text: str) -> set[str]:
    return set(re.findall(r"(?<![\w-])--[a-z][a-z-]*[a-z]", text))


@pytest.mark.parametrize("command", COMMANDS)
def test_the_page_of_commands_has_every_option_of_the_help(command, sections, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help-all"])
    offered = flags(capsys.readouterr().out) - {"--help", "--help-all"}
    # The options that swamp ticket, swamp transfer and swamp tune share with swamp run stand there once.
    shown = flags(sections[command]) | (flags(sections["run"]) if command in ("ticket", "transfer", "tune") else set())
    assert {flag for flag in offered if f"--{flag[5:]}" not in offered or not flag.startswith("--no-")} <= shown


@pytest.mark.parametrize("command", COMMANDS)
def test_no_default_has_more_digits_than_a_reader_needs(command, sections, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help-all"])
    for text in (sections[command], capsys.readouterr().out):
        assert not re.findall(r"\d\.\d{7,}", text)


def test_the_public_interface_stays_small():
    # About 60 names can be learnt; a new one replaces another, or it is imported from its module.
    assert 60 <= len(public_names()) <= 75
