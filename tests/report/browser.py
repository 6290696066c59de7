"""A page in a real browser: its document after scripts ran, and what the browser complained about."""

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def opened(url: str, profile: Path, *more: str) -> tuple[str, list[str]]:
    """The document, and the lines of the console; skips the test where there is no browser."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    # Requests to other hosts fail here, and the failure is written to the console.
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        "--virtual-time-budget=15000",
    ]
    options += [f"--user-data-dir={profile}", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", *more]
    done = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", url], capture_output=True, text=True, timeout=300, check=True
    )
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]
