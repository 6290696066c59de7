"""Damage each file of a run: the damage is detected and named, or has no effect. See docs/explanation/reliability.md.

python faults/damage.py --cases 5000 --seed 1
"""

import argparse
import contextlib
import hashlib
import io
import itertools
import json
import random
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Event

import safetensors.torch
import torch

from swamp.algorithms import Plan
from swamp.analysis.rewind_search import RewindTrial, TrialLog
from swamp.cli import main
from swamp.datasets.problem import DataOptions
from swamp.errors import Interrupted, SwampError
from swamp.files import digest, load_tensors, save_tensors
from swamp.report import write as report_files
from swamp.report.serve import LivePage
from swamp.runs import execute, open_run, read_particle
from swamp.runs.config import RunConfig, result_settings
from swamp.runs.directory import FORMAT, PROVENANCE, add_checksum
from swamp.runs.execute import start
from swamp.runs.run_progress import Reporter
from swamp.runs.study_queue import StudyDirectory
from swamp.runs.trajectory import read_trajectory
from swamp.runtime.archive import read as read_archive
from swamp.training import Training
from swamp.training.mask_updates import Dynamic

KINDS = ("truncated", "bit", "digit", "emptied", "removed", "directory", "other run", "elsewhere", "unmarked", "newer")
COMMANDS = ("compare", "compare", "masks", "analyze", "analyze", "watch", "report", "figure", "export")
_LATE = ("analysis.jsonl", "export.safetensors", "trials.jsonl", "study.json", "pair.json")
"""Files that `swamp resume` does not read; a reading command does."""


@dataclass(frozen=True)
class Case:
    """One file of one of the built directories, and its damage."""

    base: str
    file: str
    kind: str
    command: str
    seed: int


class WrongError(Exception):
    """A wrong result, or an error that does not name the file."""


def config_of(method: str = "swamp", seed: int = 0, **changes) -> RunConfig:
    """A run of a tenth of a second with two particles and three cycles."""
    ticket = 0.5 if method == "rigl-swamp" else 1
    plan = Plan(
        method, sparsity=0.75, particles=(2,), prune_fraction=(0.5,), ticket_epochs=ticket, seed=seed, barrier_points=2
    )
    plan = replace(plan, barrier_threshold=1.0, evaluation_examples=100, dynamic=Dynamic(update_interval=2))
    training = Training(epochs=2, batch_size=50, lr=0.05, swa_fraction=0.5)
    data = DataOptions(examples=200)
    config = RunConfig("tiny", "digits", "mlp-6", plan, training, data, threads=1, backend="sequential")
    return replace(config, snapshot_seconds=1e-9, **changes)


class _StopAt(Reporter):
    def __init__(self, step: int, stop: Event) -> None:
        self.left, self.stop = step, stop

    def training(self, at) -> None:
        self.left -= 1
        if self.left == 0:
            self.stop.set()


def keep_quick() -> None:
    """Read data once, and draw no comparison: drawing takes ten times as long as all else. Reports are drawn."""
    execute.build_problem = cache(execute.build_problem)
    report_files.write_comparison = report_files.write_finding = lambda *_, **__: []
    torch.set_num_threads(1)


def build_run(name: str, config: RunConfig, where: Path) -> None:
    """Make one finished run in `where`/`name`."""
    start(config, where / name, Reporter(), Event())


def build(folder: Path) -> None:
    """Make finished and stopped runs, their exports and analyses, and other runs to exchange files with."""
    keep_quick()
    for seed in (0, 1):
        where = folder / ("own" if seed == 0 else "other")
        for name, config in {
            "finished": config_of(seed=seed),
            "paths": config_of(seed=seed, trajectory_every=2),
            "means": config_of(seed=seed, keep_checkpoints="means"),
            "ensemble": config_of("imp-ensemble", seed),
            "changing": config_of("rigl-swamp", seed),
        }.items():
            build_run(name, config, where)
        for name, config, step in (
            ("paths", config_of(seed=seed, trajectory_every=2), 25),
            ("ticket", config_of(seed=seed), 2),
            ("changing", config_of("rigl-swamp", seed), 10),
            ("ensemble", config_of("imp-ensemble", seed), 14),
        ):
            stop = Event()
            with contextlib.suppress(Interrupted):
                start(config, where / f"unfinished-{name}", _StopAt(step, stop), stop)
        told("analyze", where / "finished")
        told("export", where / "finished")
        (where / "out" / "export.safetensors").rename(where / "finished" / "export.safetensors")
        trials = TrialLog(where / "trials", {"seed": seed})
        for step in range(3):
            trials.add(RewindTrial(step, 0.25 / (step + 1), 1.0, 0))
        study = where / "study"
        runs = {"swamp": config_of(seed=seed), "means": config_of("imp", seed)}
        StudyDirectory.join(study, runs)
        start(runs["means"], study / "means", Reporter(), Event())
        shutil.copytree(where / "finished", study / "swamp")
        told("cross", study)


def cases(folder: Path, count: int, seed: int) -> Iterator[Case]:
    """Yield every file with every kind of damage, repeatedly, each time with another position and command."""
    chance = random.Random(seed)
    bases = ("finished", "means", "ensemble", "changing", "paths", "trials", "study")
    bases += tuple(f"unfinished-{name}" for name in ("paths", "ticket", "changing", "ensemble"))
    files = [(base, str(file)) for base in bases for file in _files(folder / "own" / base)]
    every = [(*file, kind) for file in files for kind in KINDS]
    for number, (base, file, kind) in zip(range(count), itertools.cycle(chance.sample(every, len(every)))):
        command = chance.choice(COMMANDS)
        command = {"trials": "trials", "study": chance.choice(("study", "cross", "compare"))}.get(base, command)
        command = "archive" if file == "export.safetensors" else command
        yield Case(base, file, kind, command, seed * 10**6 + number)


def _files(base: Path) -> list[Path]:
    found = sorted(file.relative_to(base) for file in base.rglob("*") if file.is_file())
    return [file for file in found if not file.name.endswith(("lock", ".csv", ".md", ".png", ".svg", ".claim"))]


def check(case: Case, folder: Path) -> str:
    """Outcome of a case: same, refused, or not applicable. Raises WrongError for anything else."""
    base, work = folder / "own" / case.base, folder / "work" / "run"
    shutil.rmtree(work.parent, ignore_errors=True)
    shutil.copytree(base, work)
    if not damage(work / case.file, case, folder):
        return "not applicable"
    found = [_read(case, base, work, folder)]
    if case.base not in ("trials", "study"):
        found.append(_resumed(case, base, work))
    return "refused" if "refused" in found else "same"


def damage(file: Path, case: Case, folder: Path) -> bool:
    """Damage the file. Returns False if this kind of damage is impossible for the file, or changes nothing."""
    before, chance = file.read_bytes(), random.Random(case.seed)
    data = bytearray(before)
    if case.kind == "removed":
        file.unlink()
        return True
    if case.kind == "directory":
        file.unlink()
        file.mkdir()
        return True
    if case.kind in ("truncated", "emptied"):
        data = data[: chance.randrange(len(data)) if case.kind == "truncated" and data else 0]
    elif case.kind == "bit" and data:
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif case.kind == "digit":
        places = [m.start() for m in re.finditer(rb"(?<=[0-9.])[0-9](?=[0-9.])", before)] if _text(file) else []
        if places:
            place = chance.choice(places)
            data[place] = chance.choice([digit for digit in b"0123456789" if digit != data[place]])
    elif case.kind == "other run" and file.name != "export.safetensors":  # one file, which states no run
        swapped = folder / "other" / case.base / case.file
        data = bytearray(swapped.read_bytes()) if swapped.is_file() else data
    elif case.kind == "elsewhere" and file.name != "export.safetensors":
        alike = [one for one in _files(folder / "own" / case.base) if one.name[:5] == file.name[:5]]
        own = [folder / "own" / case.base / one for one in alike if str(one) != case.file]
        data = bytearray(chance.choice(own).read_bytes()) if own else data
    elif case.kind in ("unmarked", "newer"):
        data = bytearray(_of_version(file, newer=case.kind == "newer") or data)
    file.write_bytes(data)
    return bytes(data) != before


def _text(file: Path) -> bool:
    return file.suffix in (".json", ".jsonl")


def _of_version(file: Path, *, newer: bool) -> bytes | None:
    """The file as another version of swamp would write it, with a valid checksum."""
    if file.suffix == ".safetensors":
        tensors, about = load_tensors(file)
        if not newer:
            return safetensors.torch.save(
                tensors, metadata={k: v for k, v in about.items() if k not in ("run", "path")}
            )
        kind, _, number = about.get("format", "").rpartition("-")
        if not number.isdecimal():
            return None
        save_tensors(file, tensors, {**about, "format": f"{kind}-{int(number) + 1}"})
        return file.read_bytes()
    if not _text(file) or PROVENANCE.encode() not in file.read_bytes():
        return None
    lines = file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]
    covered = result_settings if file.name == "config.json" else dict
    return "\n".join(_line_of_version(json.loads(line), newer, covered) for line in lines).encode()


def _line_of_version(value, newer: bool, covered: Callable[[dict], dict]) -> str:
    """The line in another format; `covered` selects the values that the checksum covers."""
    if isinstance(value, list):
        return f"[{', '.join(_line_of_version(one, newer, covered) for one in value)}]"
    provenance = {**value.pop(PROVENANCE), "format": FORMAT + 1}
    del provenance["checksum"]
    stated = {PROVENANCE: add_checksum(covered(value), provenance)[PROVENANCE]} if newer else {}
    return json.dumps({**value, **stated})


@cache
def _expected(command: str, base: Path, folder: Path) -> object:
    """Output for the undamaged run, from a copy, because commands write into a run and its parent folder."""
    copy = folder / "undamaged" / "run"
    shutil.rmtree(copy.parent, ignore_errors=True)
    shutil.copytree(base, copy)
    try:
        return told(command, copy)
    except SwampError:
        return SwampError  # expected for a run without a finished cycle


def told(command: str, run: Path) -> object:
    """Output of a reading command for a run, without paths and times. Raises SwampError if the command does."""
    out = run.parent / "out"
    other = run.parent.parent / "own" / "study" / "means"
    arguments = {
        "compare": ["compare", run, "--out", out / "compare", "--json"],
        "report": ["report", run, "-o", out / "report.html", "--json"],
        "figure": ["figure", run, "-o", out / "figure.svg", "--json"],
        "export": ["export", run, "-o", out / "export.safetensors", "--json"],
        "masks": ["masks", run, other, "--out", out / "masks", "--json"],
        "analyze": ["analyze", run, "--only", "barriers", "--points", "2", "--examples", "50", "--json", "--quiet"],
        "study": ["study", run, "--workers", "0", "--json"],
        "cross": ["cross", run, "--out", run / "cross", "--json", "--quiet"],
    }
    if command == "trials":
        return [(trial.steps, trial.barrier) for trial in TrialLog(run, {"seed": 0})]
    if command == "archive":
        return digest(read_archive(run / "export.safetensors").tensors)
    if command == "watch":
        page, _ = LivePage([run])()
        return "waiting" if b"whole page" in page else _plain(page.decode(), run)
    printed = _printed([str(word) for word in arguments[command]])
    if command == "analyze":
        if damaged := [
            text for text in json.loads(printed)["skipped"].values() if ".safetensors" in text or ".json" in text
        ]:
            raise SwampError(damaged[0])
        file = run / "analysis.jsonl"
        records = [json.loads(line) for line in _lines(file)] if file.exists() else []
        return [{key: value for key, value in record.items() if key != PROVENANCE} for record in records]
    if command == "export":
        return digest(load_tensors(out / "export.safetensors")[0])
    if command == "report":
        return _plain((out / "report.html").read_text(), run)
    if command == "figure":
        return None  # pictures contain the time at which they were drawn
    return without_time(json.loads(printed))


def _plain(page: str, run: Path) -> str:
    page = re.sub(r"\d{4}-\d\d-\d\dT[0-9:]+\+00:00|\d+(\.\d+)? (s|min|h)\b", "", page.replace(str(run), "RUN"))
    return hashlib.sha256(page.encode()).hexdigest()


def _printed(arguments: list[str]) -> str:
    """Standard output of a command. Raises SwampError with its message if the exit code is 2."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as error:
            if error.code == 2:
                raise SwampError(err.getvalue()) from error
            raise WrongError(f"exit code {error.code}: {err.getvalue()}") from error
    return out.getvalue()


def without_time(value):
    """The value without times and paths."""
    if isinstance(value, dict):
        left_out = ("seconds", "run", PROVENANCE, "files", "path", "study", "report", "paths", "time", "cost")
        return {key: without_time(inner) for key, inner in value.items() if key not in left_out}
    return [without_time(inner) for inner in value] if isinstance(value, list) else value


def _read(case: Case, base: Path, work: Path, folder: Path) -> str:
    expected = _expected(case.command, base, folder)
    try:
        found = told(case.command, work)
    except SwampError as error:
        if expected is not SwampError:
            _require_named(case, str(error))
        return "refused"
    # Files that were not kept are left out, and a run without its last line counts as unfinished.
    gone = case.kind == "removed" and (_late(case, base) or case.file.endswith("summary.json"))
    # Pages show both. The settings in config.json that decide the result are compared with the start of the run.
    gone |= case.file in ("environment.json", "config.json") and case.command in ("report", "watch")
    if case.command == "watch" and found != expected and not gone:
        page, _ = LivePage([work])()
        _require_named(case, page.decode())
        return "refused"
    if found != expected and expected is not SwampError and not gone:
        raise WrongError(f"{case.command} gives another output: {str(found)[:300]} != {str(expected)[:300]}")
    return "same"


def _resumed(case: Case, base: Path, work: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            _printed(["resume", str(work), "--json", "--quiet"])
        except SwampError as error:
            _require_named(case, str(error))
            return "refused"
    reference = base.parent / base.name.removeprefix("unfinished-")
    reference = base.parent / "finished" if base.name == "unfinished-ticket" else reference
    for file in _files(reference):
        if str(file) != case.file or not _late(case, reference):
            _require_same(reference, work, file)
    for left in work.rglob("unfinished*"):
        if (
            not left.name.endswith(".quarantined")
            and ".quarantined" not in left.name
            and str(left.relative_to(work)) != case.file
        ):
            raise WrongError(f"{left} was left behind")
    if _late(case, reference) and case.kind not in ("removed",):
        return _late_reader(case, base, work)
    return "same"


def _late(case: Case, reference: Path) -> bool:
    """Whether resume does not read the file: of finished cycles, files that are not needed any more."""
    name = Path(case.file).name
    return name in _LATE or (name.startswith(("particle-", "trajectory-")) and (reference / case.file).exists())


def _late_reader(case: Case, base: Path, work: Path) -> str:
    file = Path(case.file)
    if not file.name.startswith(("particle-", "trajectory-")):
        return "same"
    directory, _ = open_run(work)
    directory = directory if file.parts[0].startswith("cycle-") else directory.below(file.parts[0])
    cycle, number = int(file.parent.name[6:]), int(file.stem[-1])
    whole = load_tensors(base / file) if (base / file).exists() else None
    try:
        if file.name.startswith("trajectory-"):
            read_trajectory(work / file, directory)
        else:
            read_particle(directory, cycle, number)
    except SwampError as error:
        _require_named(case, str(error))
        return "refused"
    if whole and not _equal(whole[0], load_tensors(work / file)[0]):
        raise WrongError(f"{file} is accepted although it was altered")
    return "same"


def _require_same(reference: Path, work: Path, file: Path) -> None:
    if not (work / file).is_file():
        if file.name in _LATE:
            return
        raise WrongError(f"{file} is missing after resume")
    if file.suffix == ".safetensors" and not _equal(load_tensors(reference / file)[0], load_tensors(work / file)[0]):
        raise WrongError(f"{file} differs after resume")
    if file.name in ("record.json", "metrics.jsonl", "summary.json"):
        one, two = ([without_time(json.loads(line)) for line in _lines(path / file)] for path in (reference, work))
        if one != two:
            raise WrongError(f"{file} has other values after resume")


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.suffix == ".jsonl" else [file.read_text()]


def _equal(one, two) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def _require_named(case: Case, message: str) -> None:
    names = {Path(case.file).name, Path(case.file).name.removesuffix(".safetensors")}
    if "Traceback" in message or not any(name in message for name in names):
        raise WrongError(f"the message does not name {case.file}: {message[:400]}")


def campaign(folder: Path, count: int, seed: int, tell: Callable[[str], None] = print) -> Counter:
    """Run the cases on the directories built in `folder`, and count the outcomes. `tell` gets each failure."""
    counts: Counter = Counter()
    for case in cases(folder, count, seed):
        try:
            outcome = check(case, folder)
        except WrongError as error:
            outcome = "wrong"
            tell(f"{case}: {error}")
        except Exception:
            outcome = "traceback"
            tell(f"{case}:\n{traceback.format_exc()}")
        counts[outcome] += 1
        counts[f"{case.kind}, {outcome}"] += 1
    return counts


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    given, began = parser.parse_args(), time.monotonic()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as place:
        build(Path(place))
        found = campaign(Path(place), given.cases, given.seed)
    for name, number in sorted(found.items()):
        print(f"  {name}: {number}")
    totals = ", ".join(f"{found[name]} {name}" for name in ("same", "refused", "not applicable", "wrong", "traceback"))
    print(f"damage: {given.cases} cases in {time.monotonic() - began:.0f} s: {totals}")
    sys.exit(1 if found["wrong"] or found["traceback"] else 0)
