"""swamp export and swamp benchmark."""

import json
import math
import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.table import Table
from torch import Tensor, nn

from swamp.analysis import RunData
from swamp.cli.session import Err, Out, parse, print_json, warnings_to
from swamp.errors import SwampError, unknown
from swamp.files import write_atomic
from swamp.runs import RunConfig, prepare
from swamp.runtime import Dense, Program, compacted, finalise, folded, load, read, save, trace
from swamp.runtime.benchmark import OURS, Latency, Size, benchmark, best_dense, size_of
from swamp.runtime.formats import FORMATS
from swamp.training import Data, Task, batch_to

_NAMES = {**{name: name for name in FORMATS}, "safetensors": "sparse"}


@dataclass(frozen=True)
class ExportArgs:
    """Write the sparse network of a run as one file for others to load: smaller, and faster with swamp.load.

    swamp export runs/x                              runs/x/export.safetensors: surviving weights and the graph

    swamp export runs/x --to onnx -o model.onnx      a dense graph for any runtime

    The run is not changed. Formats: sparse (the same as safetensors), dense, csr, onnx (deflated where the file ends
    in .gz), pt2. What the file gives is compared with the network before it is said to be there.
    """

    run: tyro.conf.Positional[Path]
    """Run directory."""
    to: str = "sparse"
    """Format: sparse, safetensors, dense, csr, onnx or pt2."""
    out: Path | None = None
    """File to write (default: export.* in the run directory)."""
    cycle: int = -1
    """Cycle whose network it is; -1: the last, the sparsest."""
    compact: bool = False
    """Remove dead units, exactly; for onnx and pt2 (what swamp.load gives has none)."""
    values: Literal["float32", "bfloat16"] = "float32"
    """Of the surviving weights in the file, for the sparse format: bfloat16 is half the size, and rounded."""
    json: bool = False
    """Print one JSON object on standard output and nothing else there."""


def export_command(arguments: Sequence[str]) -> None:
    """swamp export RUN."""
    given = parse(ExportArgs, "swamp export", ["--out" if word == "-o" else word for word in arguments])
    if given.to not in _NAMES:
        raise unknown("format", given.to, _NAMES)
    name = _NAMES[given.to]
    if given.values != "float32" and name != "sparse":
        raise SwampError(f"--values {given.values} is for the sparse format, not for {given.to}.")
    if given.compact and name not in ("onnx", "pt2"):
        raise SwampError(f"--compact changes the shapes of weights, which onnx and pt2 can hold and {given.to} cannot.")
    with warnings_to(Err):
        subject = RunData.open(given.run)
        program, apart = _program(subject, given.cycle)
        write, ending, _ = FORMATS[name]
        out = given.out or given.run / f"export{ending}"
        if name == "sparse":
            save(program, out, values=getattr(torch, given.values))
            program = read(out)
        else:
            write(compacted(folded(program)) if given.compact else program, out)
    told = asdict(size_of(program, out))
    done = {"file": str(out), "format": name, "sparsity": program.about["sparsity"], "difference": apart, **told}
    if given.json:
        print_json(done)
        return
    ratio = told["dense_bytes"] / told["file_bytes"]
    Out.print(
        f"{out}: {told['file_bytes']:,} bytes, 1/{ratio:.1f} of the dense float32 weights "
        f"(sparsity {program.about['sparsity']:.4f}; outputs differ by at most {apart:.1g}).",
        soft_wrap=True,
        highlight=False,
    )
    if name == "sparse":
        Out.print(f"Measure it: swamp benchmark {shlex.quote(str(out))}", soft_wrap=True, highlight=False)


def _program(subject: RunData, index: int) -> tuple[Program, float]:
    """The program of a cycle's network, and by how much its outputs differ from the network's."""
    if not -subject.cycles <= index < subject.cycles:
        raise SwampError(f"{subject.directory.path} has {subject.cycles} finished cycles; there is no cycle {index}.")
    cycle = subject.cycle(index % subject.cycles)
    subject.model.load_state_dict(dict(cycle.weights))
    model = finalise(subject.model, cycle.mask).cpu()
    inputs = next(iter(subject.task.test.in_order(8)))[0]
    if not isinstance(inputs, Tensor):
        raise SwampError("an export needs a task whose inputs are one tensor.")
    inputs = inputs.cpu()
    about = {
        "config": subject.config.to_json(),
        "cycle": cycle.index,
        "sparsity": cycle.mask.sparsity,
        "test": cycle.measured.test,
    }
    traced = trace(model, inputs)
    program = Program(traced.inputs, traced.steps, traced.output, traced.tensors, json.loads(json.dumps(about)))
    with torch.no_grad():
        want, found = model(inputs), Dense(folded(program))(inputs)
    apart = float((want - found).abs().max()) / max(1.0, float(want.abs().max()))
    if not apart <= 1e-5:
        raise SwampError(
            f"the exported program differs from the network by {apart:.2g}, more than rounding explains; nothing was "
            "written. Please report it with the model."
        )
    return program, apart


@dataclass(frozen=True)
class BenchmarkArgs:
    """Measure an exported network on this machine: size, speed beside the dense runtimes that are installed, accuracy.

    swamp benchmark runs/x/export.safetensors --batch 1,32,128

    Latencies are medians over rounds in which all runtimes take turns; ratios are to the fastest dense float32 one.
    Accuracy is measured again, from the file, on the test data of the run it came from.
    """

    file: tyro.conf.Positional[Path]
    """What swamp export wrote, in the sparse format."""
    batch: str = "1,32,128"
    """Batch sizes."""
    runtimes: tuple[str, ...] = ()
    """Of torch, torch.compile, onnxruntime, openvino, swamp and, beside the dense ones in float32, "torch bf16",
    "openvino bf16" and "torch csr" (default: all that are installed)."""
    seconds: float = 4.0
    """Of measuring for each batch size."""
    threads: int = 0
    """Threads of every runtime (0: torch's own choice)."""
    accuracy: bool = True
    """Measure the accuracy as well, which needs the data."""
    out: Path | None = None
    """Write everything as JSON to this file."""
    json: bool = False
    """Print one JSON object on standard output and nothing else there."""


def benchmark_command(arguments: Sequence[str]) -> None:
    """swamp benchmark FILE."""
    given = parse(BenchmarkArgs, "swamp benchmark", ["--out" if word == "-o" else word for word in arguments])
    batches = _batches(given.batch)
    if given.threads < 0 or not given.seconds > 0:
        raise SwampError(f"threads must be 0 or more and seconds above 0, got {given.threads} and {given.seconds}.")
    program = read(given.file)
    before = torch.get_num_threads()
    torch.set_num_threads(given.threads or before)
    try:
        with warnings_to(Err):
            found = benchmark(program, batches, given.runtimes, given.seconds)
            measured = _accuracy(given.file, program) if given.accuracy and "config" in program.about else None
        load_average = os.getloadavg()[0]
        threads = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    size = size_of(program, given.file)
    done: dict[str, Any] = {"file": str(given.file), "size": asdict(size), "accuracy": measured, "threads": threads}
    done |= {"load": load_average, "latencies": [_row(one, found) for one in found]}
    if given.out is not None:
        write_atomic(given.out, (json.dumps(done, indent=1) + "\n").encode())
    if given.json:
        print_json(done)
        return
    _print(given.file, program, size, measured, found)
    Out.print(f"{threads} threads; load of the machine {load_average:.1f}", highlight=False)


def _batches(text: str) -> list[int]:
    try:
        batches = [int(word) for word in text.replace(" ", ",").split(",") if word]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise SwampError(f"--batch {text!r} is no list of sizes; give for example --batch 1,32,128.")
    return batches


def _row(one: Latency, found: Sequence[Latency]) -> dict[str, Any]:
    rival = best_dense(found, one.batch)
    ratio = None if rival is None else rival.median / one.median
    return {**asdict(one), "throughput": one.throughput, "ratio": ratio}


def _accuracy(path: Path, program: Program) -> dict[str, Any]:
    """Of the file on the test data, by our runtime, beside what the run recorded."""
    problem, _ = prepare(RunConfig.from_json({**program.about["config"], "device": "cpu"}))
    module = load(path, batch=128)
    return {"file": tested(module, problem.task, problem.task.test), "run": program.about["test"]}


def tested(module: nn.Module, task: Task, data: Data) -> dict[str, float]:
    """Every metric of the task for a module without parameters."""
    outputs: list[Tensor] = []
    targets: list[Tensor] = []
    for batch in data.in_order(128):
        inputs, target = batch_to(batch, torch.device("cpu"))
        outputs.append(module(inputs))
        targets.append(target)
    return {name: metric(torch.cat(outputs), torch.cat(targets)) for name, metric in task.metrics.items()}


def _print(path: Path, program: Program, size: Size, measured: dict[str, Any] | None, found: Sequence[Latency]) -> None:
    Out.print(
        f"{path}: {size.kept:,} of {size.parameters:,} numbers; {size.file_bytes:,} bytes (dense float32 "
        f"{size.dense_bytes:,}, deflated {size.deflated_bytes:,}: 1/{size.dense_bytes / size.file_bytes:.1f} and "
        f"1/{size.deflated_bytes / size.file_bytes:.1f}); {size.operations:,} of {size.dense_operations:,} operations.",
        soft_wrap=True,
        highlight=False,
    )
    if measured is not None:
        shown = ", ".join(
            f"{name} {value:.4f} (run: {measured['run'].get(name, math.nan):.4f})"
            for name, value in measured["file"].items()
        )
        Out.print(f"test, from the file: {shown}", soft_wrap=True, highlight=False)
    table = Table("runtime", "batch", "ms", "spread", "a second", "ratio", "how")
    for one in sorted(found, key=lambda one: one.batch):
        ratio = _row(one, found)["ratio"]
        table.add_row(
            f"[bold]{one.runtime}[/bold]" if one.runtime == OURS else one.runtime,
            str(one.batch),
            f"{1e3 * one.median:.3f}",
            f"{1e3 * (one.high - one.low):.3f}",
            f"{one.throughput:,.0f}",
            "" if ratio is None else f"{ratio:.2f}",
            one.note,
        )
    Out.print(table)
    Out.print("spread: between the quartiles; ratio: to the fastest dense float32 runtime", highlight=False)
