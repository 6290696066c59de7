"""Environment of a run: versions, machine and device, since others round differently."""

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("swamp", "numpy", "safetensors", "mnist1d", "scikit-learn")


def environment(device: torch.device, ranks: Sequence[str] = ()) -> dict[str, Any]:
    """Versions, machine, device, threads, the git state of swamp's own source, and the ranks of a distributed job."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": str(device) if device.type == "cpu" else f"{device} ({torch.cuda.get_device_name(device)})",
        # The version in torch's metadata lacks the build (+cpu, +cu124).
        "packages": {"torch": torch.__version__} | {name: version for name in _PACKAGES if (version := _version(name))},
        "git": _git(),
        "ranks": [*ranks],
    }


def facts(device: str) -> dict[str, Any]:
    """Facts that all ranks of a run must share, as otherwise they round differently."""
    return {
        "swamp": _version("swamp"),
        "swamp's source": _git(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": _version("numpy"),
        "byte order": sys.byteorder,
        "device": device,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _git() -> str | None:
    source = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=source,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
