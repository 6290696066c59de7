"""`make ranks`: a run on two hosts, simulated by network namespaces of this machine. Needs root and iproute2.

Checks that the result equals that of one process, that the error names a frozen rank and a disconnected host, and that
the run can be resumed.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from swamp.files import digest, load_tensors

RECIPE = ["digits-mlp", "--epochs", "60", "--sparsity", "0.5", "--barrier-threshold", "1"]
RECIPE += ["--backend", "sequential", "--particles", "4"]
QUICK = ["--snapshot-seconds", "0.2", "--heartbeat-seconds", "6"]
HOSTS = {"swamp-a": "10.87.0.1", "swamp-b": "10.87.0.2"}


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextmanager
def hosts() -> Generator[None]:
    """Two network namespaces, connected by a virtual cable."""
    a, b = HOSTS
    try:
        for name in HOSTS:
            ip("netns", "add", name)
        ip("link", "add", "veth-a", "netns", a, "type", "veth", "peer", "name", "veth-b", "netns", b)
        for name, address in HOSTS.items():
            ip("-n", name, "addr", "add", f"{address}/24", "dev", f"veth-{name[-1]}")
            ip("-n", name, "link", "set", f"veth-{name[-1]}", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in HOSTS:
            subprocess.run(["ip", "netns", "del", name], check=False)


def job(*arguments: str, each: int = 1) -> list[subprocess.Popen[str]]:
    """Start torchrun on both hosts."""
    rendezvous = ["--nnodes=2", f"--nproc-per-node={each}", f"--master-addr={HOSTS['swamp-a']}", "--master-port=29555"]
    running: list[subprocess.Popen[str]] = []
    for number, name in enumerate(HOSTS):
        command = ["ip", "netns", "exec", name, sys.executable, "-m", "torch.distributed.run", *rendezvous]
        command += [f"--node-rank={number}", "-m", "swamp", *arguments]
        running.append(subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    return running


def ended(running: list[subprocess.Popen[str]]) -> str:
    return "".join(part for process in running for part in process.communicate())


def same(one: Path, two: Path) -> bool:
    names = sorted(path.relative_to(one) for path in one.rglob("*.safetensors"))
    return bool(names) and all(digest(load_tensors(one / n)[0]) == digest(load_tensors(two / n)[0]) for n in names)


def check(what: str, good: bool, told: str = "") -> None:
    print(("ok    " if good else "WRONG ") + what, flush=True)
    if not good:
        sys.exit(told)


def spoiled(run: Path, do: Callable[[int], None]) -> str:
    """Start the run, call `do` with the pid of rank 1 in the middle of it, and return the output of the job."""
    running = job("run", *RECIPE, *QUICK, "--out", str(run))
    while not list(run.glob("cycle-01/unfinished-*")):
        if any(process.poll() is not None for process in running):
            return ended(running)
        time.sleep(0.02)
    members = json.loads((run / "environment.json").read_text())[-1]["ranks"]
    pid = int(re.findall(r"pid (\d+)", members[1])[0])
    do(pid)
    told = "".join(running[0].communicate())
    # torchrun of the other host waits for its rank, which may stay frozen or disconnected.
    running[1].terminate()
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    running[1].communicate()
    return told


def cut(pid: int) -> None:
    ip("-n", "swamp-b", "link", "set", "veth-b", "down")


def main() -> None:
    with TemporaryDirectory() as folder, hosts():
        runs, swamp = Path(folder), [sys.executable, "-m", "swamp"]
        one = subprocess.run([*swamp, "run", *RECIPE, "--quiet", "--out", str(runs / "one")], check=False)
        check("one process", one.returncode == 0)
        told = ended(job("run", *RECIPE, "--out", str(runs / "two")))
        check("two hosts equal one process, bit for bit", same(runs / "one", runs / "two"), told)
        told = ended(job("run", *RECIPE, "--out", str(runs / "four"), each=2))
        check("two ranks on each of two hosts equal one process", same(runs / "one", runs / "four"), told)
        for name, do in (
            ("killed", lambda pid: os.kill(pid, signal.SIGKILL)),
            ("frozen", lambda pid: os.kill(pid, signal.SIGSTOP)),
            ("cut-off", cut),
        ):
            told = spoiled(runs / name, do)
            check(f"a rank {name} is named", bool(re.search(r"swamp: rank 1 \(host", told)), told)
            ip("-n", "swamp-b", "link", "set", "veth-b", "up")
            again = subprocess.run([*swamp, "resume", str(runs / name), "--quiet"], check=False)
            check(
                f"the run with a rank {name} is resumed and equal",
                again.returncode == 0 and same(runs / "one", runs / name),
                told,
            )


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    main()
