""".ci/venv: a virtual environment where Python has no ensurepip, as on Debian. A container shows that it works."""

import io
import runpy
import sys
import urllib.request
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / ".ci" / "venv"


def test_a_pip_with_another_checksum_is_not_run(tmp_path, monkeypatch):
    main = runpy.run_path(str(SCRIPT))["main"]
    monkeypatch.setitem(main.__globals__, "find_spec", lambda name: None)
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, **more: io.BytesIO(b"something else"))
    with pytest.raises(SystemExit, match=r"is not the file with SHA-256 .*apt install python3-venv"):
        main(tmp_path / "env")
    assert not (tmp_path / "env" / "bin" / "pip").exists()


def test_an_old_python_is_told_what_to_do(tmp_path, monkeypatch):
    main = runpy.run_path(str(SCRIPT))["main"]
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))
    with pytest.raises(SystemExit, match=r"swamp needs Python 3\.11 or later; run: make PYTHON=python3\.12"):
        main(tmp_path / "env")
