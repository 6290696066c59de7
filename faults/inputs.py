"""Random configurations, study files, command lines and calls: each runs a step or is refused with one clear message.

    python faults/inputs.py --cases 10000 --seed 0

Values come from the dataclasses themselves, so that new fields and commands are included. Each chunk of cases is one
process with limited memory and without root privileges. Results of chunks are kept in build/faults, and a stopped
campaign can be continued. The short form is tests/faults/test_inputs.py.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any, cast
from unittest import mock

import hypothesis
import numpy as np
import torch
from hypothesis import strategies as st
from torch import nn

import swamp
from sandbox import SECONDS, Sandbox, Verdict, limit_memory
from swamp.algorithms import METHODS, Plan
from swamp.analysis import ANALYSES
from swamp.analysis.ablations import FACTORS
from swamp.backends import BACKENDS
from swamp.cli import (
    analyze,
    compare,
    completion,
    cross,
    export,
    find_ticket,
    listing,
    noise,
    report,
    run,
    share,
    study,
    transfer_run,
    tune,
)
from swamp.cli.workers import Workers
from swamp.datasets import TASKS
from swamp.datasets.problem import DataOptions, Problem, in_memory
from swamp.masks.allocation import ALLOCATIONS
from swamp.masks.patterns import STRUCTURES
from swamp.recipes import RECIPES, STUDIES
from swamp.report.matplotlib_renderer import FORMATS
from swamp.report.serve import PageServer
from swamp.runs import execute
from swamp.runs.config import RunConfig
from swamp.runs.run_progress import Reporter, TrainingStep
from swamp.runs.study import Study
from swamp.scores import SCORES
from swamp.training import Seed, Training
from swamp.training.optimizers import torch_optimizers
from values import OTHERS, TEXT, any_value, flags, flat_fields, typed, words

CHUNK = 500
# Repeated requests to the hub take a minute, and are not tested here.
os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}

COMMANDS: dict[str, tuple[type[Any], int]] = {
    "run": (run.RunArgs, 8),
    "resume": (run.ResumeArgs, 3),
    "ticket": (find_ticket.TicketArgs, 2),
    "study": (study.StudyArgs, 3),
    "tune": (tune.TuneArgs, 3),
    "transfer": (transfer_run.TransferArgs, 2),
    "compare": (compare.CompareArgs, 3),
    "analyze": (analyze.AnalyzeArgs, 2),
    "masks": (cross.MasksArgs, 2),
    "noise": (noise.NoiseArgs, 1),
    "cross": (cross.CrossArgs, 1),
    "report": (report.ReportArgs, 2),
    "watch": (report.WatchArgs, 2),
    "figure": (report.FigureArgs, 2),
    "export": (export.ExportArgs, 3),
    "share": (share.ShareArgs, 1),
    "benchmark": (export.BenchmarkArgs, 1),
    "list": (listing.ListArgs, 2),
    "completion": (completion.CompletionArgs, 1),
}
"""Command -> its options, and its relative frequency."""

PATHS = ["missing", "folder", "file.txt", "latin.txt", "secret", "closed/x", "loop", "dangling", "run", "stopped"]
PATHS += [
    "study",
    "export.safetensors",
    "config.json",
    "study.toml",
    "text",
    "images",
    "deep.json",
    "run/mask.safetensors",
]
PATHS = [f"../zoo/{name}" for name in PATHS]
PATHS += [
    "",
    ".",
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "x" * 300,
    "a\nb",
    "\udcff",
    "é/漢",
    "[red]x",
    "-",
    "~nobody/x",
]
PATHS += ["/proc/self/mem", "/proc/self/environ", "../zoo/file.txt/below", "/dev/null/x", "~", "$HOME", "a/" * 3000]


def _listed(names: str) -> list[str]:
    return names.split()


POOLS: dict[str, list[Any]] = {
    "method": sorted(METHODS),
    "task": _listed(
        "fuzz fuzz fuzz text-folder text-folder-number text-folder-text image-folder digits cifar-10 glue-sst2"
    ),
    "model": _listed(
        "mlp-4 mlp-bn-4-4 resnet-8 wrn-10-1 lenet-5 conv1d encoder-1-32 decoder-1-32 mlp-65536-65536 mlp-0 mlp- vgg-11 "
        "mlp-99999999999999 resnet-1299 encoder-1300-65536 encoder-1-65536 timm:nothing timm: hf: hf:../zoo/folder"
    ),
    "backend": ["auto", *BACKENDS],
    "structure": [*STRUCTURES, "2:4", "1:4", "4:8", "0:4", "4:2", "1:1000000", "2:4:8", ":", "-1:4"],
    "score": sorted(SCORES),
    "allocation": sorted(ALLOCATIONS),
    "optimizer": ["sgd", "adamw", *sorted(torch_optimizers()), "Optimizer", "LBFGS", "SparseAdam"],
    "retrain": ["slr", "lrw", "ft", "clr", "llr", "allr"],
    "device": ["cpu", "auto", "cuda", "cuda:7", "cuda:-1", "meta", "mps", "cpu:3", "xpu", "cuda:99999999999999999999"],
    "recipe": [*sorted(RECIPES), "custom"],
    "folder": ["../zoo/text", "../zoo/images", *PATHS],
    "tokenizer": ["bytes", "words", "../zoo/folder"],
    "columns": ["text", "label", "missing"],
    "label": ["label", "text"],
    "include": ["*", "*.weight", "nothing*", "hidden1.weight"],
    "exclude": ["*", "*.weight", "nothing*", "hidden1.weight"],
    "only": [*ANALYSES, *FACTORS],
    "which": ["accuracy", "barrier", "hull", "masks"],
    "methods": sorted(METHODS),
    "what": list(listing._REGISTRIES),
    "format": [*FORMATS, "sparse", "onnx", "csr", "dense"],
    "metric": ["accuracy", "nll", "nothing"],
    "batch": ["1", "1,8", "0", "1,,2", "99999999999999999999"],
    "runtimes": ["torch", "swamp", "torch csr", "nothing"],
    "study": [*sorted(STUDIES), "../zoo/study.toml", "../zoo/study"],
    "search": ["lr", "lr=0.01..1:log", "particles=1,2", "epochs=1..2", "lr=1..0", "nothing", "=", "seed=1,2", "sam"],
    "storage": [
        "trials.db",
        "../zoo/file.txt",
        "nothing://x",
        "sqlite:///../zoo/closed/x",
        "postgresql://127.0.0.1:1/x",
    ],
    "job": ["timeout_min=1", "x", "=", "a=b"],
    **dict.fromkeys(("out", "run", "runs", "file", "trials", "config"), PATHS),
}
SMALL: dict[str, Any] = {
    "task": "fuzz",
    "model": "mlp-4",
    "device": "cpu",
    "threads": 1,
    "plan": {
        "sparsity": 0.5,
        "particles": [2],
        "prune_fraction": [0.5],
        "barrier_threshold": 1.0,
        "dynamic": {"update_interval": 1},
    },
    "training": {"epochs": 2, "batch_size": 16, "lr": 0.05, "swa_fraction": 0.5},
}
COMBINED = ("plan.method", "plan.structure", "plan.score", "plan.allocation", "backend", "training.precision")
COMBINED += (
    "training.schedule",
    "training.optimizer",
    "training.sharpness",
    "training.lr_after_rewind",
    "task",
    "model",
)
"""A case takes any combination of these names."""


@dataclass(frozen=True)
class Case:
    """One case: a command line and the files that it reads, or a call of `swamp.prune`."""

    words: tuple[str, ...] = ()
    files: tuple[tuple[str, bytes], ...] = ()
    steps: int = 1
    """Training steps after which a run is stopped."""
    options: tuple[tuple[str, Any], ...] | None = None
    given: tuple[str, ...] = ()
    """Parts of the input; a refusal must name at least one."""


def fuzz_task(options: DataOptions, seed: Seed) -> Problem:
    """Forty images of three classes."""
    images = torch.randn(52, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = torch.arange(52) % 3
    arrays = images[:40], targets[:40], images[40:], targets[40:]
    return in_memory(arrays, 3, options, seed, lambda inputs, generator: inputs)


TASKS["fuzz"] = fuzz_task


class Stopper(Reporter):
    """Stops a run after a number of steps."""

    def __init__(self, stop: Event, steps: int) -> None:
        self.stop, self.left = stop, steps

    def training(self, at: TrainingStep) -> None:
        """Count a step."""
        self.left -= 1
        if self.left <= 0:
            self.stop.set()


class Enough(Exception):  # noqa: N818
    """Ends a call that has trained enough steps."""


# Drawing cases


def _set(values: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            return
        values = cast("dict[str, Any]", inner)
    values[last] = value


@st.composite
def configs(draw: st.DrawFn) -> tuple[Any, tuple[str, ...]]:
    """A configuration as JSON values, and the names of the changed settings."""
    hints = flat_fields(RunConfig)
    values = cast("dict[str, Any]", json.loads(json.dumps(SMALL)))
    for name in draw(st.lists(st.sampled_from(COMBINED), max_size=4, unique=True)):
        pool = POOLS.get(name.rpartition(".")[2], [])
        _set(values, name, draw(st.sampled_from(pool) if pool else typed(hints[name])))
    if values["task"] in ("text-folder", "text-folder-number", "text-folder-text", "image-folder"):
        _set(values, "data.folder", "../zoo/images" if values["task"] == "image-folder" else "../zoo/text")
    changed = draw(st.lists(st.sampled_from(sorted(hints)), max_size=3, unique=True))
    for name in changed:
        _set(values, name, draw(any_value(hints[name], POOLS.get(name.rpartition(".")[2], ()))))
    if draw(st.integers(0, 11)) == 7:
        name = draw(
            st.sampled_from(["nonsense", "plan.lr", "training.x", "data.text.", "plan", "training", "data.text"])
        )
        _set(values, name, draw(st.sampled_from(OTHERS)))
        changed.append(name)
    return values, tuple({*changed, *flattened_names(values)})


def flattened_names(values: Any) -> list[str]:
    """Names of all settings, and the texts among their values."""
    if isinstance(values, dict):
        return [name for key, inner in values.items() for name in (key, *flattened_names(inner))]
    if isinstance(values, list):
        return [name for inner in values for name in flattened_names(inner)]
    return [values] if isinstance(values, str) and values.strip() else []


def config_text() -> st.SearchStrategy[tuple[bytes, tuple[str, ...]]]:
    """The bytes of a configuration file: mostly a JSON object of settings, sometimes arbitrary bytes."""
    whole = configs().map(lambda found: (_json(found[0]), found[1]))
    return st.integers(0, 15).flatmap(lambda n: garbage().map(lambda data: (data, ())) if n == 7 else whole)


def _json(values: Any) -> bytes:
    return json.dumps(values).encode()


def garbage() -> st.SearchStrategy[bytes]:
    """Contents that are not JSON, or JSON of another kind."""
    odd = [b"", b"{", b"[]", b"null", b"7", b'"x"', b"[" * 100_000, b'{"a":' * 100_000, b"\xff\xfe{}", b"\x00" * 1000]
    odd += [b"NaN", b"1e999999", b"1" * 5000, b'{"plan": {"seed": ' + b"9" * 5000 + b"}}", b'{"a": 1, "a": 2}', b"{}"]
    odd += [
        '{"task": "é"}'.encode("latin-1"),
        '{"task": "x"}'.encode("utf-16"),
        b'{"recipe": "\\ud800"}',
        b"\xef\xbb\xbf{}",
    ]
    return st.sampled_from(odd) | st.binary(max_size=200)


@st.composite
def from_config(draw: st.DrawFn) -> Case:
    """`swamp run --config FILE`."""
    data, names = draw(config_text())
    words = ["run", "--config", "c.json", "--out", "out", "--quiet"]
    return Case(tuple(words), (("c.json", data),), draw(st.sampled_from([1, 1, 1, 30])), given=names)


@st.composite
def from_words(draw: st.DrawFn) -> Case:
    """Any command with any options."""
    name = draw(st.sampled_from([name for name, (_, weight) in COMMANDS.items() for _ in range(weight)]))
    kind = COMMANDS[name][0]
    chosen = draw(st.lists(flags(kind, POOLS), max_size=3))
    paths = draw(st.lists(st.sampled_from(PATHS), max_size=3)) if name not in ("run", "ticket", "tune") else []
    if name == "completion":
        paths = draw(st.lists(st.sampled_from(["bash", "tcsh", ""]), max_size=2))
    if name == "list":
        paths = draw(st.lists(st.sampled_from([*listing._REGISTRIES, "nothing", ""]), max_size=2))
    small = (
        ["--config", "../zoo/config.json"] if name in ("run", "ticket", "tune") and draw(st.integers(0, 5)) != 4 else []
    )
    if draw(st.integers(0, 30)) == 17:
        return Case((draw(st.sampled_from([*TEXT, name, "--version", "-h"])).replace("\0", ""), *words(chosen)))
    if draw(st.integers(0, 40)) == 17:
        chosen.append(["--help"])
    ends = ["--workers", "0"] if name == "study" and draw(st.booleans()) else []
    given = tuple(word for word in [*paths, *words(chosen)] if word)
    return Case((name, *paths, *small, *words(chosen), *ends), given=() if small else given)


@st.composite
def from_python(draw: st.DrawFn) -> Case:
    """`swamp.prune(model, task, ...)`."""
    hints = {**flat_fields(Training), **{n: h for n, h in flat_fields(Plan).items() if "." not in n}}
    hints["backend"] = str
    chosen = draw(st.lists(st.sampled_from(sorted(hints)), min_size=1, max_size=3, unique=True))
    return Case(options=tuple((name, draw(any_value(hints[name], POOLS.get(name, ())))) for name in chosen))


@st.composite
def from_study(draw: st.DrawFn) -> Case:
    """`swamp study FILE.toml`."""
    if draw(st.integers(0, 9)) == 7:
        odd = [
            b"a = ",
            b"[grid]\nlr = []",
            b"\xff",
            b"a = " + b"[" * 50_000,
            b"[grid]\nseed = 0\nseed = 1",
            b"grid = 7",
        ]
        return Case(("study", "s.toml", "--workers", "0"), (("s.toml", draw(st.sampled_from(odd))),), given=("s.toml",))
    names = sorted({*flat_fields(RunConfig), *(name.rpartition(".")[2] for name in flat_fields(RunConfig))})
    options = st.dictionaries(
        st.sampled_from(names) | st.sampled_from(TEXT),
        st.sampled_from([*OTHERS, 0, 1, 2, 0.1, "imp", [1, 2], ["imp"]]),
        max_size=3,
    )
    hints = flat_fields(Study)
    values: dict[str, Any] = {"grid": draw(options), "settings": draw(options)}
    for name in draw(st.lists(st.sampled_from(sorted(hints)), max_size=2)):
        _set(values, name, draw(any_value(hints[name])))
    if draw(st.booleans()):
        values["runs"] = {draw(st.sampled_from([*TEXT, "a"])): draw(options)}
    files = (("s.toml", _toml(values).encode(errors="surrogatepass")),)
    return Case(("study", "s.toml", "--workers", draw(st.sampled_from(["0", "1"]))), files, given=("s.toml",))


def _toml(values: dict[str, Any]) -> str:
    return "\n".join(f"{json.dumps(str(key))} = {_toml_value(value)}" for key, value in values.items()) + "\n"


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {_toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml_value, cast("list[Any]", value))) + "]"
    if value is None:
        return '""'
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value)


def cases() -> st.SearchStrategy[Case]:
    """Cases of all kinds, configurations most often."""
    return st.sampled_from([from_config] * 4 + [from_words] * 4 + [from_python, from_study]).flatmap(
        lambda kind: kind()
    )


# Trying cases


def attempt(sandbox: Sandbox, case: Case) -> Verdict:
    """Try a case."""
    if case.options is not None:
        return sandbox.call(lambda: _prune(dict(case.options or ())))
    with _staged(sandbox, case):
        verdict = sandbox.command(*case.words)
    if verdict.outcome == "refused" and case.given and not _speaks_of(verdict.message, case.given):
        return Verdict("fault", f"does not say what was given: {verdict.message}")
    return verdict


def _speaks_of(message: str, given: tuple[str, ...]) -> bool:
    bare = "".join(character for character in message if character.isalnum())
    for name in given:
        last = "".join(character for character in name.rpartition(".")[2] if character.isalnum())
        if (last and last[:20] in bare) or name[:20] in message or repr(name)[1:20] in message:
            return True
        if name.encode("utf-8", "backslashreplace").decode()[:20] in message:
            return True
    # It may also name another option that conflicts with the given one, or a missing option.
    options = (name.rpartition(".")[2] for name in flat_fields(RunConfig))
    said = ("JSON", "$", "configuration", "Missing", "Unrecognized", "no run was given", ". is not", "''")
    return any(word in message for word in (*said, *options))


def _prune(options: dict[str, Any]) -> None:
    left = 3

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise Enough
        return nn.functional.cross_entropy(outputs, targets)

    names = set(flat_fields(Training))
    data = fuzz_task(DataOptions(), Seed(0)).task
    small: dict[str, Any] = {"epochs": 2, "batch_size": 16, "swa_fraction": 0.5}
    with contextlib.suppress(Enough):
        training = Training(**small | {name: value for name, value in options.items() if name in names})
        plan = {name: value for name, value in options.items() if name not in names}
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 3))
        swamp.prune(model, replace(data, loss=loss), training=training, **{"sparsity": 0.5, "particles": 2, **plan})


@contextlib.contextmanager
def _staged(sandbox: Sandbox, case: Case) -> Iterator[None]:
    """Inside the block: files of the case, a run that stops by itself, no workers, a server that ends."""

    def started(config: RunConfig, out: Path, reporter: Any, stop: Event) -> dict[str, Any]:
        return execute.start(config, out, Stopper(stop, case.steps), stop)

    def resumed(path: Path, reporter: Any, stop: Event) -> dict[str, Any]:
        return execute.resume(path, Stopper(stop, case.steps), stop)

    @contextlib.contextmanager
    def no_workers(*_: object, **__: object) -> Iterator[Any]:
        yield Workers([], [])

    class Served(PageServer):
        def __enter__(self) -> Any:
            os.kill(os.getpid(), signal.SIGINT)
            return super().__enter__()

    for name in ("run", "stopped", "study"):
        shutil.rmtree(sandbox.zoo / name, ignore_errors=True)
        shutil.copytree(sandbox.root / "kept" / name, sandbox.zoo / name)
    entered = sandbox.entered

    @contextlib.contextmanager
    def with_files(seconds: int = SECONDS) -> Iterator[None]:
        with entered(seconds):
            for name, data in case.files:
                Path(name).write_bytes(data)
            yield

    with (
        mock.patch.object(run, "start", started),
        mock.patch.object(run, "resume", resumed),
        mock.patch.object(study, "local_workers", no_workers),
        mock.patch.object(study, "submit", return_value=[]),
        mock.patch.object(tune, "local_workers", no_workers),
        mock.patch("swamp.tuning.optuna_studies.WAITS", ()),
        mock.patch("swamp.report.serve.PageServer", Served),
        mock.patch.object(sandbox, "entered", with_files),
    ):
        yield


def built(root: Path) -> Sandbox:
    """A sandbox with its zoo: runs, a study, an exported network, and many kinds of paths."""
    sandbox = Sandbox(root, patience=SECONDS)
    zoo, kept = sandbox.zoo, sandbox.root / "kept"
    if not (kept / "study").exists():
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir()
        (zoo / "config.json").write_text(json.dumps(SMALL))
        with sandbox.entered(30 * SECONDS):
            TASKS["mnist1d-10k"](DataOptions(), Seed(0))  # generated once, for the task of many recipes
        _must(sandbox, "run", "--config", "../zoo/config.json", "--out", "../kept/run", "--quiet")
        with mock.patch.object(run, "start", lambda c, o, r, s: execute.start(c, o, Stopper(s, 20), s)):
            _must(
                sandbox, "run", "--config", "../zoo/config.json", "--out", "../kept/stopped", "--quiet", "--seed", "1"
            )
        _must(sandbox, "export", "../kept/run", "--out", "../zoo/export.safetensors")
        (zoo / "study.toml").write_text(
            "[settings]\ntask='fuzz'\nmodel='mlp-4'\nepochs=2\nbatch_size=16\n[grid]\nseed=[0,1]\n"
        )
        _must(sandbox, "study", "../zoo/study.toml", "--out", "../kept/study", "--workers", "0")
        _filled(zoo)
    sandbox.patience = 2
    return sandbox


def _must(sandbox: Sandbox, *words: str) -> None:
    verdict = sandbox.command(*words)
    if verdict.outcome != "ran":
        raise SystemExit(f"the zoo cannot be built: swamp {' '.join(words)}: {verdict.message}")


def _filled(zoo: Path) -> None:
    for name in ("folder", "closed", "text", "images"):
        (zoo / name).mkdir(exist_ok=True)
    (zoo / "file.txt").write_text("just text\n")
    (zoo / "latin.txt").write_bytes("Zufällig\n".encode("latin-1"))
    (zoo / "secret").write_text("{}")
    (zoo / "secret").chmod(0)
    (zoo / "closed" / "x").write_text("{}")
    (zoo / "closed").chmod(0)
    (zoo / "loop").symlink_to("loop")
    (zoo / "dangling").symlink_to("nowhere/at/all")
    (zoo / "deep.json").write_bytes(b"[" * 100_000)
    for part, count in (("train", 24), ("test", 8)):
        rows = "".join(f"the {'good' if i % 2 else 'bad'} film {i},{i % 2}\n" for i in range(count))
        (zoo / "text" / f"{part}.csv").write_text("text,label\n" + rows)
        for label in ("cat", "dog"):
            folder = zoo / "images" / part / label
            folder.mkdir(parents=True)
            for i in range(4):
                _png(folder / f"{i}.png", i)


def _png(path: Path, seed: int) -> None:
    from PIL import Image

    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)


# The campaign


def one_chunk(folder: Path, number: int, seed: int, count: int) -> None:
    """Try `count` cases. Each writes the case before it runs, in case the process dies, and then a line of JSON."""
    sandbox = built(folder / "sandbox")
    torch.set_num_threads(1)
    limit_memory()
    out = (folder / f"chunk-{number:05d}.jsonl").open("w", buffering=1)
    tried = 0

    def one(case: Case) -> None:
        nonlocal tried
        if tried == count:
            return
        tried += 1
        out.write(json.dumps({"case": repr(case)}) + "\n")
        began = time.monotonic()
        verdict = attempt(sandbox, case)
        kind = "python" if case.options is not None else case.words[0]
        line = {"kind": kind, "outcome": verdict.outcome, "message": verdict.message[-3000:]}
        out.write(json.dumps(line | {"seconds": round(time.monotonic() - began, 3)}) + "\n")

    settings = hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    hypothesis.seed(seed * 100_003 + number)(settings(hypothesis.given(cases())(one)))()
    out.write('{"done": true}\n')


def main() -> int:
    """Run the campaign; returns 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--chunk", type=int, default=-1, help="one chunk alone, in this process")
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    folder = (given.folder or Path("build/faults") / f"inputs-{given.seed}").absolute()
    folder.mkdir(parents=True, exist_ok=True)
    if given.chunk >= 0:
        one_chunk(folder, given.chunk, given.seed, given.cases)
        return 0
    counts: Counter[str] = Counter()
    for number in range(-(-given.cases // CHUNK)):
        file = folder / f"chunk-{number:05d}.jsonl"
        count = min(CHUNK, given.cases - number * CHUNK)
        if not (file.exists() and '"done"' in file.read_text()[-20:]):
            _in_process(folder, number, given.seed, count)
        counts += counted(file)
        print(f"{number + 1} chunks: {dict(counts)}", flush=True)
    faults = sum(n for name, n in counts.items() if name not in ("ran", "refused"))
    print(f"inputs: {sum(counts.values())} tried, {counts['ran']} ran, {counts['refused']} refused, {faults} faults")
    return int(faults > 0)


def _in_process(folder: Path, number: int, seed: int, count: int) -> None:
    command = [sys.executable, __file__, "--chunk", str(number), "--seed", str(seed), "--cases", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "last.log").open("wb") as log, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(
            [*command, "--folder", str(folder)],
            stdout=log,
            stderr=log,
            env=environment,
            timeout=40 * count,
            check=False,
        )
    file = folder / f"chunk-{number:05d}.jsonl"
    if '"done"' not in (file.read_text()[-20:] if file.exists() else ""):
        tail = (folder / "last.log").read_text(errors="replace")[-1000:]
        with file.open("a") as out:
            out.write(json.dumps({"outcome": "died", "message": f"the process died or hung: {tail}"}) + "\n")
            out.write('{"done": true}\n')


def counted(file: Path) -> Counter[str]:
    """Count the outcomes of a chunk."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    return Counter(line["outcome"] for line in lines if "outcome" in line)


if __name__ == "__main__":
    sys.exit(main())
