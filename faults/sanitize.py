"""Run a Python program with kernels that AddressSanitizer and UndefinedBehaviorSanitizer watch.

    python faults/sanitize.py --lanes 8 -m pytest tests/runtime
    python faults/sanitize.py --lanes 16 faults/networks.py --cases 100

The kernels are compiled with --lanes floats in a vector, which GCC supports on any processor. Memory of torch and numpy
comes from the sanitizer, with poisoned memory around it; the first access outside ends the process with a report. It
uses one thread, because the arenas of several threads lie side by side.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

FLAGS = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
LIBRARIES = ("libasan.so", "libubsan.so", "libstdc++.so.6")
"""Loaded before Python, which is not compiled for the sanitizers; the last one is needed for exceptions of C++."""


def environment(lanes: int) -> dict[str, str] | None:
    """Environment variables for a process with watched kernels; None without GCC and its sanitizers."""
    compiler = shutil.which(os.environ.get("CC") or "gcc")
    if compiler is None:
        return None
    found = [subprocess.check_output([compiler, f"-print-file-name={name}"], text=True).strip() for name in LIBRARIES]
    if not all(Path(path).is_absolute() for path in found):
        return None
    return {
        **os.environ,
        "CC": compiler,
        "LD_PRELOAD": " ".join(found),
        # Python and torch keep memory until the process ends, and mix allocators of C and C++.
        "ASAN_OPTIONS": "detect_leaks=0:alloc_dealloc_mismatch=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "OMP_NUM_THREADS": "1",
        "SWAMP_KERNEL_FLAGS": f"{FLAGS} -DSIMD_WIDTH={lanes}",
    }


def main(arguments: list[str]) -> None:
    """Replace this process by Python with watched kernels."""
    lanes = 0
    if arguments[:1] == ["--lanes"]:
        lanes, arguments = int(arguments[1]), arguments[2:]
    variables = environment(lanes or 16)
    if variables is None:
        sys.exit("the sanitizers need gcc with libasan and libubsan; on Debian: apt install gcc")
    os.execve(sys.executable, [sys.executable, *arguments], variables)


if __name__ == "__main__":
    main(sys.argv[1:])
