"""Export the networks of zoo/exportable.py, load and time them, and write the table: see `make export-zoo`.

The weights are random and pruned by magnitude. Each network is exported at 90 %, loaded by a process in which only the
dependencies of the runtime are installed, and compared with the original at three batch sizes. Then swamp at each
sparsity and the dense runtimes are timed in turn. A step that is finished (build/export-zoo/NAME.json) is not repeated.
"""

import argparse
import copy
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

import swamp
from entry import write_table
from exportable import NETWORKS, Exportable, Inputs
from loaded import bound, call, tensors_of
from swamp.errors import SwampError
from swamp.masks import Mask, prune_mask
from swamp.runtime.archive import read, save
from swamp.runtime.benchmark import RUNTIMES
from swamp.runtime.formats import to_onnx
from swamp.runtime.network import SparseNetwork
from swamp.runtime.program import Program

BATCHES = 1, 2, 5
"""Batch sizes of the comparison."""
EXAMPLES = 8
"""Examples with which networks are traced, and in a timed call."""
DENSE = "torch", "onnxruntime", "openvino"
EXPORTED_AT = 0.9
TOLERANCE = 1e-4
BARE = Path("build/runtime-only/bin/python")


def made(network: Exportable) -> nn.Module:
    """The network in eval mode, with random numbers in place of biases of 0, scales of 0 and running statistics."""
    torch.manual_seed(0)
    model = network.make().eval()
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.dim() == 1 and tensor.is_floating_point():
                # Scales and variances are positive; what is added may have any sign.
                shifts = name.endswith(("bias", "running_mean"))
                tensor.copy_(torch.randn_like(tensor) / 10 if shifts else torch.rand_like(tensor) + 0.5)
    return model


def mask_of(model: nn.Module, sparsity: float) -> Mask:
    """The weights of the largest magnitude, with the allocation ERK."""
    mask = Mask.ones(model)
    scores = {name: value.detach().abs() for name, value in model.named_parameters() if name in mask}
    nnz = round((1 - sparsity) * mask.prunable)
    return prune_mask(mask, scores, nnz, allocation="erk" if len(mask) > 1 else "global")


@torch.no_grad()
def prune_(model: nn.Module, sparsity: float) -> Mask:
    """Prune in place, and scale the remaining weights: outputs keep their size, and differences their meaning."""
    mask = mask_of(model, sparsity)
    norms = {name: value.norm() for name, value in model.named_parameters()}
    mask.apply_(model)
    for name, value in model.named_parameters():
        if name in mask and mask[name].any():
            value *= norms[name] / value.norm()
    return mask


def export(network: Exportable, folder: Path, sparsities: Sequence[float]) -> dict[str, Any]:
    """Export, then load and compare in the bare environment. Raises SwampError if swamp refuses the network."""
    dense = made(network)
    model = copy.deepcopy(dense)
    mask = prune_(model, EXPORTED_AT)
    path = _file(folder, network, EXPORTED_AT)
    start = time.perf_counter()
    swamp.export(model, path, network.inputs(EXAMPLES), mask, dynamic=network.dynamic)
    found: dict[str, Any] = {"export_seconds": time.perf_counter() - start}
    found["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    checks = [(inputs, tensors_of(call(model, inputs))) for inputs in map(network.inputs, BATCHES)]
    found |= _loaded(path, checks)
    program = read(path)
    found["dense_bytes"] = sum(4 * tensor.numel() for tensor in program.tensors.values() if tensor.is_floating_point())
    for sparsity in set(sparsities) - {EXPORTED_AT}:
        model = copy.deepcopy(dense)
        prune_(model, sparsity)
        state = model.state_dict()
        pruned = {name: state[own] for own, name in program.state.items()}
        save(replace(program, tensors={**program.tensors, **pruned}), _file(folder, network, sparsity))
    return {**found, "bytes": {s: _file(folder, network, s).stat().st_size for s in (*sparsities, EXPORTED_AT)}}


def _file(folder: Path, network: Exportable, sparsity: float) -> Path:
    return folder / f"{network.name}-{sparsity}.safetensors"


def _loaded(path: Path, checks: Any) -> dict[str, Any]:
    """What zoo/loaded.py prints in the environment that has only the dependencies of the runtime."""
    with tempfile.NamedTemporaryFile(suffix=".pt") as file:
        torch.save(checks, file.name)
        command = [BARE, Path(__file__).parent / "loaded.py", path, file.name]
        ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        raise SwampError(f"not loaded: {_last_line(ended.stderr)}")
    return {**json.loads(_last_line(ended.stdout)), "notes": ended.stderr.strip()}


def speed(network: Exportable, folder: Path, sparsities: Sequence[float], seconds: float) -> dict[str, Any]:
    """Time all runtimes in turn."""
    program = read(_file(folder, network, sparsities[0]))
    inputs = network.inputs(EXAMPLES)
    calls: dict[str, Callable[[], Any]] = {}
    found: dict[str, Any] = {"ways": {}, "failed": {}}
    for name in DENSE:
        try:
            calls[name] = _dense_call(name, program, inputs, folder / f"{network.name}.onnx")
        except Exception as error:
            found["failed"][name] = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
    for sparsity in sparsities:
        executed = SparseNetwork(read(_file(folder, network, sparsity)), batch=EXAMPLES)
        found["ways"][sparsity] = next(iter(executed.tuned.values())).method
        calls[str(sparsity)] = partial(call, executed, inputs)
    return {**found, "seconds": in_turn(calls, seconds), "load": os.getloadavg()[0]}


def _dense_call(name: str, program: Program, inputs: Inputs, onnx: Path) -> Callable[[], Any]:
    """A call of a dense runtime, executed once."""
    if name != "torch" and not onnx.exists():
        to_onnx(program, onnx)
    tensors = bound(program, inputs)
    execute, _ = RUNTIMES[name][1](program, EXAMPLES, onnx)
    execute(tensors)
    return partial(execute, tensors)


@torch.no_grad()
def in_turn(calls: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """Median seconds of each call, measured in turn, so that other load affects all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while len(next(iter(times.values()))) < 5 or time.perf_counter() < end:
        for name, execute in calls.items():
            execute()
            start = time.perf_counter()
            execute()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(own) for name, own in times.items()}


def record_of(folder: Path, name: str) -> dict[str, Any]:
    """The finished steps of a network."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _keep(args: argparse.Namespace, name: str, step: str, result: dict[str, Any]) -> None:
    record = {**record_of(args.folder, name), step: result}
    (args.folder / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def execute(step: str, name: str, args: argparse.Namespace) -> None:
    """Execute one step of a network, and record the result or the reason why there is none."""
    warnings.simplefilter("ignore")
    network = next(one for one in NETWORKS if one.name == name)
    sparsities = [float(word) for word in args.sparsity.split(",")]
    start = time.perf_counter()
    try:
        if step == "export":
            torch.set_num_threads(1)
            result = export(network, args.folder, sparsities)
        else:
            result = speed(network, args.folder, sparsities, args.seconds)
    except Exception as error:
        result = {"fault": f"{type(error).__name__}: {error}"}
    _keep(args, name, step, {**result, "took": round(time.perf_counter() - start, 1)})


def in_child(step: str, name: str, args: argparse.Namespace) -> str:
    """Execute one step of a network in a process of its own. Returns the outcome in short."""
    child = _PROCESSES.Process(target=execute, args=(step, name, args))
    child.start()
    child.join(args.limit)
    if child.exitcode != 0:
        fault = f"not finished after {args.limit:.0f} s" if child.is_alive() else f"ended with status {child.exitcode}"
        _keep(args, name, step, {"fault": fault})
        child.kill()
    result = record_of(args.folder, name)[step]
    done = "fault" not in result and step == "speed"
    return f"{'timed' if done else _outcome(result)} ({result.get('took', args.limit)} s)"


# The libraries are imported once, by the process that the others are forked from.
_PROCESSES = multiprocessing.get_context("forkserver")
_LIBRARIES = "timm", "transformers", "torch_geometric.nn", "diffusers", "torch.export", "torch._dynamo"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="names of networks (default: all)")
    parser.add_argument("--sparsity", default="0,0.8,0.9,0.95")
    parser.add_argument("--seconds", type=float, default=1.0, help="of measuring each network; 0: no speed")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds after which a step is given up")
    parser.add_argument("--jobs", type=int, default=2, help="networks that are exported at once; speed: one by one")
    parser.add_argument("--folder", type=Path, default=Path("build/export-zoo"))
    parser.add_argument("--out", type=Path, help="page whose part between the marks <!-- export-zoo --> is replaced")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    _PROCESSES.set_forkserver_preload(["exportable", *_LIBRARIES])
    networks = [network for network in NETWORKS if not args.only or network.name in args.only]
    for step, jobs in (("export", args.jobs), ("speed", 1))[: 2 if args.seconds else 1]:
        missing = [one.name for one in networks if not _finished(record_of(args.folder, one.name), step)]
        with ThreadPoolExecutor(jobs) as pool:
            outcomes = pool.map(partial(in_child, step, args=args), missing)
            for number, (name, outcome) in enumerate(zip(missing, outcomes, strict=True), 1):
                print(f"{step} {number}/{len(missing)} {name}: {outcome[:300]}", flush=True)
    records = {network: record_of(args.folder, network.name) for network in networks}
    equal = sum(_outcome(record.get("export")) == "equal" for record in records.values())
    summary = f"{equal} of {len(records)} equal"
    print(summary)
    if args.out:
        write_table(args.out, "<!-- export-zoo -->", f"{summary}.", table(records, args.sparsity.split(",")))
    sys.exit(equal < len(records))


def _outcome(export: dict[str, Any] | None) -> str:
    if export is None:
        return "not executed yet"
    if "fault" in export:
        return export["fault"]
    worst = max(export["difference"], export["kernel_difference"])
    return "equal" if worst <= TOLERANCE else f"differs by {worst:.1g}"


def _finished(record: dict[str, Any], step: str) -> bool:
    if step == "speed" and not _finished(record, "export"):
        return "export" in record  # Its refusal or difference is in the table.
    return step in record and ("seconds" in record[step] or _outcome(record[step]) == "equal")


def table(records: dict[Exportable, dict[str, Any]], sparsities: Sequence[str]) -> str:
    """The records as a table of Markdown."""
    heads = [f"{100 * float(sparsity):.0f} %" for sparsity in sparsities]
    lines = [
        "| network | library | parameters | operations in kernels / torch | largest difference | "
        f"file relative to dense at {', '.join(heads)} | best dense | speed at {' | at '.join(heads)} |",
        f"|{'---|' * (7 + len(heads))}",
    ]
    for network, record in records.items():
        cells = _cells(network, record, [str(float(sparsity)) for sparsity in sparsities])
        lines.append(f"| {' | '.join(cells + [''] * (len(heads) + 7 - len(cells)))} |")
    return "\n".join(lines)


def _cells(network: Exportable, record: dict[str, Any], sparsities: Sequence[str]) -> list[str]:
    exported, timed = record.get("export", {}), record.get("speed", {})
    cells = [network.name, network.kind]
    if "difference" not in exported:
        return [*cells, "", "", _outcome(record.get("export"))]
    cells += [f"{exported['parameters']:,}", f"{exported['in_kernels']} / {exported['in_torch']}"]
    cells += [f"{max(exported['difference'], exported['kernel_difference']):.0e}"]
    cells += [", ".join(f"1/{exported['dense_bytes'] / exported['bytes'][sparsity]:.1f}" for sparsity in sparsities)]
    if "seconds" not in timed:
        return [*cells, timed.get("fault", "not measured")]
    dense = min((name for name in DENSE if name in timed["seconds"]), key=lambda name: timed["seconds"][name])
    best = timed["seconds"][dense]
    cells += ["; ".join([f"{dense}, {1e3 * best:.2f} ms", *(f"{name} cannot" for name in timed["failed"])])]
    for sparsity in sparsities:
        kept = " (dense is kept)" if timed["ways"][sparsity] == "dense" else ""
        cells.append(f"{best / timed['seconds'][sparsity]:.2g}{kept}")
    return cells


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason"])[-1]


if __name__ == "__main__":
    main()
