"""swamp export and swamp benchmark."""

import json
import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.table import Table
from rich.text import Text
from torch import nn

from swamp.analysis.run_data import RunData
from swamp.api.origin import example_inputs
from swamp.cli.session import Err, Out, parse, print_json, warnings_to
from swamp.datasets.problem import Problem
from swamp.errors import SwampError, plural, unknown, warn
from swamp.files import write_atomic
from swamp.references import PYTHON_PREFIX
from swamp.runs import read_cycle
from swamp.runs.config import MOST_THREADS, RunConfig
from swamp.runs.directory import RunDirectory
from swamp.runs.execute import prepare
from swamp.runs.read import open_with_cycles, read_origin, warn_of_first_member
from swamp.runs.reference_origin import python_network
from swamp.runtime import load
from swamp.runtime.archive import read, save
from swamp.runtime.benchmark import SWAMP, Latency, NetworkSize, benchmark, best_dense, measure_size
from swamp.runtime.exporting import CheckedProgram, checked_program
from swamp.runtime.formats import WRITERS
from swamp.runtime.network import exported_file
from swamp.runtime.program import Program
from swamp.runtime.rewrite import fold_batchnorm, remove_dead_units
from swamp.runtime.tracing import bake_mask
from swamp.training.module_extra_state import load_state
from swamp.training.task import predict

_FORMATS = {**{name: name for name in WRITERS}, "safetensors": "sparse"}


@dataclass(frozen=True)
class ExportArgs:
    """Write the sparse network of a run to a file that is smaller, and faster to execute with swamp.load.

      swamp export runs/x                              runs/x/export.safetensors: non-zero weights and the graph
      swamp export runs/x --to onnx -o model.onnx      a dense graph for other runtimes

    The run is not changed. Formats: sparse (also called safetensors), dense, csr, onnx (compressed if the file name
    ends in .gz), pt2. The exported program is compared with the network before anything is written.
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    to: str = "sparse"
    """Format: sparse, safetensors, dense, csr, onnx or pt2."""
    out: Path | None = None
    """File to write (default: export.* in the run directory)."""
    cycle: int = -1
    """Cycle to export; -1: the last one, which has the highest sparsity."""
    compact: bool = False
    """Remove dead units, without changing outputs; for onnx and pt2 (swamp.load always does it)."""
    values: Literal["float32", "bfloat16"] = "float32"
    """Type of the weights in a file of the sparse format: bfloat16 halves their size and rounds them."""
    model: str = ""
    """For a run that was started from Python: package.module:function, or file.py:function, that makes its model."""
    task: str = ""
    """Function that makes the task, likewise: its test inputs trace the network (default: random inputs)."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""


def export_command(arguments: Sequence[str]) -> None:
    """swamp export RUN."""
    args = parse(ExportArgs, "swamp export", arguments)
    if args.to not in _FORMATS:
        raise unknown("format", args.to, _FORMATS)
    name = _FORMATS[args.to]
    if args.values != "float32" and name != "sparse":
        raise SwampError(f"--values {args.values} is only available for the sparse format, not for {args.to}.")
    if args.compact and name not in ("onnx", "pt2"):
        raise SwampError(
            f"--compact removes channels, and {args.to} cannot store weights of other shapes. Use --to onnx or "
            "--to pt2, or leave --compact out."
        )
    write, ending = WRITERS[name]
    out = args.out or args.run / f"export{ending}"
    if out.resolve() in {path.resolve() for path in RunDirectory(args.run).files}:
        raise SwampError(f"{out} is a file of the run, which an export does not change; choose another --out.")
    with warnings_to(Err):
        done = _program(exported_source(args), args.cycle)
        program = done.program
        if name == "sparse":
            save(program, out, values=getattr(torch, args.values))
            program = read(out)
        else:
            write(remove_dead_units(fold_batchnorm(program)) if args.compact else program, out)
    size, sparsity = measure_size(program, out), program.provenance["sparsity"]
    if args.json:
        about = {"file": str(out), "format": name, "sparsity": sparsity, "difference": done.difference}
        print_json({**about, **asdict(size)})
        return
    Out.print(
        f"{out}: {size.file_bytes:,} bytes, 1/{size.dense_bytes / size.file_bytes:.1f} of the dense float32 weights "
        f"(sparsity {sparsity:.4f}; outputs differ by {done.difference:.1g} of the largest).",
        soft_wrap=True,
    )
    if name == "sparse":
        Out.print(f"Measure its speed: swamp benchmark {shlex.quote(str(out))}", soft_wrap=True)


@dataclass(frozen=True)
class ExportedSource:
    """The run whose network is exported, and inputs to trace it with."""

    directory: RunDirectory
    config: RunConfig
    model: nn.Module
    inputs: Any
    problem: Problem | None = None
    """None: the data of the run was not read."""


def exported_source(args: ExportArgs) -> ExportedSource:
    """The network of a run, and inputs to trace it with."""
    directory, config = open_with_cycles(args.run)
    if config.model.startswith(PYTHON_PREFIX) and not args.task:
        inputs = example_inputs(read_origin(directory))
        if inputs is None:
            raise SwampError(
                f"the inputs of {args.run} are not one tensor: pass --task FUNCTION, which makes its task, or call "
                "swamp.export(model, path, example) in Python."
            )
        model = python_network(directory, args.model)
        return ExportedSource(directory, replace(config, model=args.model), model, inputs)
    run = RunData.open(args.run, args.model, args.task)
    inputs = next(iter(run.task.require_outputs("an export").in_order(8)))[0]
    return ExportedSource(run.directory, run.config, run.model, inputs, run.problem)


def _program(source: ExportedSource, index: int) -> CheckedProgram:
    """The program of a cycle's network."""
    finished = source.directory.finished
    if not -finished <= index < finished:
        raise SwampError(f"{source.directory.path} has {finished} finished cycles; there is no cycle {index}.")
    cycle = read_cycle(source.directory, index % finished)
    warn_of_first_member(source.config, cycle)
    load_state(source.model, cycle.weights)
    done = checked_program(bake_mask(source.model, cycle.mask), source.inputs)
    provenance = {
        "config": source.config.to_json(),
        "cycle": cycle.index,
        "sparsity": cycle.mask.sparsity,
        "test": cycle.metrics.test,
    }
    return replace(done, program=replace(done.program, provenance=json.loads(json.dumps(provenance))))


@dataclass(frozen=True)
class BenchmarkArgs:
    """Measure an exported network on this machine: size, speed compared with dense runtimes, and accuracy.

      swamp benchmark runs/x/export.safetensors --batch 1,32,128

    Latencies are medians over rounds in which all runtimes are measured in turn; ratios are relative to the fastest
    dense float32 runtime. Accuracy is measured from the file, on the test data of its run.
    """

    file: tyro.conf.Positional[Path]
    """A file that swamp export wrote, in the sparse format; or a run directory with export.safetensors."""
    batch: str = "1,32,128"
    """Batch sizes."""
    runtimes: tuple[str, ...] = ()
    """Dense in float32: torch, torch.compile, onnxruntime, openvino. Others: swamp, "torch bf16", "openvino bf16",
    "torch csr" (default: all that are installed)."""
    seconds: float = 4.0
    """Seconds of measuring for each batch size."""
    threads: int = 0
    """Threads of every runtime (0: the default of torch)."""
    accuracy: bool = True
    """Also measure the accuracy, which needs the data."""
    out: Path | None = None
    """Write all results as JSON to this file."""
    json: bool = False
    """Print one JSON object on standard output, and nothing else."""


def benchmark_command(arguments: Sequence[str]) -> None:
    """swamp benchmark FILE."""
    args = parse(BenchmarkArgs, "swamp benchmark", arguments)
    batches = _batches(args.batch)
    if not 0 <= args.threads <= MOST_THREADS:
        raise SwampError(f"threads must be from 0 to {MOST_THREADS}, got {args.threads}.")
    if not args.seconds > 0:
        raise SwampError(f"seconds must be above 0, got {args.seconds}.")
    if args.out is not None and args.out.is_dir():
        raise SwampError(f"--out {args.out} is a folder. Give the path of a file.")
    file = exported_file(args.file)
    program = read(file)
    before = torch.get_num_threads()
    torch.set_num_threads(args.threads or before)
    try:
        with warnings_to(Err):
            latencies = benchmark(program, batches, args.runtimes, args.seconds)
            has_run = "config" in program.provenance and not _is_python(program.provenance["config"])
            accuracy = _accuracy(file, program) if args.accuracy and has_run else None
        load_average = os.getloadavg()[0]
        threads = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    size = measure_size(program, file)
    results: dict[str, Any] = {"file": str(file), "size": asdict(size), "accuracy": accuracy, "threads": threads}
    results |= {"load": load_average, "latencies": [_row(one, latencies) for one in latencies]}
    if args.out is not None:
        write_atomic(args.out, (json.dumps(results, indent=1) + "\n").encode())
    if args.json:
        print_json(results)
        return
    _print(file, size, accuracy, latencies)
    Out.print(f"{plural(threads, 'thread')}; load average of the machine {load_average:.1f}")


def _batches(text: str) -> list[int]:
    try:
        batches = [int(word) for word in text.replace(" ", ",").split(",") if word]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise SwampError(f"--batch {text!r} is not a list of batch sizes; use for example --batch 1,32,128.")
    return batches


def _is_python(config: dict[str, Any]) -> bool:
    """Whether the model or the task of a run is an object of a Python program."""
    return any(config[name].startswith(PYTHON_PREFIX) for name in ("model", "task"))


def _row(one: Latency, latencies: Sequence[Latency]) -> dict[str, Any]:
    dense = best_dense(latencies, one.batch)
    ratio = None if dense is None else dense.median / one.median
    return {**asdict(one), "throughput": one.throughput, "ratio": ratio}


def _accuracy(path: Path, program: Program) -> dict[str, Any] | None:
    """The metrics of the file on the test data, executed by swamp, and those that the run recorded.

    None, with a warning, where the task calls the network in another way than the export did.
    """
    problem, _ = prepare(RunConfig.from_json({**program.provenance["config"], "device": "cpu"}))
    task = problem.task
    test = task.require_outputs("a comparison of outputs")
    try:
        outputs, targets = predict(load(path, batch=128), task, test, batch_size=128)
    except SwampError as error:
        warn(f"the metrics from the file were not measured: {error}")
        return None
    metrics = {name: metric(outputs, targets) for name, metric in task.metrics.items()}
    return {"file": metrics, "run": program.provenance["test"]}


def _print(path: Path, size: NetworkSize, accuracy: dict[str, Any] | None, latencies: Sequence[Latency]) -> None:
    Out.print(
        f"{path}:\n"
        f"{size.active:,} of {size.parameters:,} parameters are active, {size.flops:,} of {size.dense_flops:,} FLOPs\n"
        f"{size.file_bytes:,} bytes: 1/{size.dense_bytes / size.file_bytes:.1f} of dense float32, "
        f"1/{size.compressed_bytes / size.file_bytes:.1f} of the compressed dense file",
        soft_wrap=True,
    )
    if accuracy is not None:
        metrics = ", ".join(
            f"{name} {value:.4f} (run: {accuracy['run'].get(name, math.nan):.4f})"
            for name, value in accuracy["file"].items()
        )
        Out.print(f"test, from the file: {metrics}")
    Out.print(latency_table(latencies))
    Out.print("spread: ms between the quartiles; ratio: speed over that of the fastest\ndense float32 runtime")


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.3f}" if seconds < 0.1 else f"{1e3 * seconds:.1f}"


def latency_table(latencies: Sequence[Latency]) -> Table:
    """The latencies by batch size; in 80 columns a long note may take several lines."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("runtime", "batch", "ms", "spread", "examples/s", "ratio"):
        table.add_column(heading, justify="left" if heading == "runtime" else "right", no_wrap=True)
    table.add_column("note")
    for one in sorted(latencies, key=lambda one: one.batch):
        ratio = _row(one, latencies)["ratio"]
        table.add_row(
            Text(one.runtime, "bold") if one.runtime == SWAMP else one.runtime,
            str(one.batch),
            _milliseconds(one.median),
            _milliseconds(one.high - one.low),
            f"{one.throughput:,.0f}",
            "" if ratio is None else f"{ratio:.2f}",
            one.note,
        )
    return table
