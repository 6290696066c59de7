"""Altered files of every kind that swamp reads: each is loaded or refused with a SwampError, in bounded memory.

    python faults/loaders.py --cases 20000 --seed 0

Cases are divided among the loaders. Half of the changes are structured: they keep a file valid (lengths, compression,
checksums) and alter its content. The other bytes are chosen by atheris for code coverage if it is installed
(pip install 'swamp[fuzz]'), else at random. Results of finished loaders are kept in build/faults, so a stopped campaign
continues with the next loader. The short form is tests/faults/test_loaders.py.
"""

import argparse
import gzip
import io
import itertools
import json
import math
import os
import random
import re
import struct
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import safetensors.torch
import torch
from torch import nn

from sandbox import limit_memory
from swamp import files
from swamp.algorithms import Cycle
from swamp.analysis.analysis_tasks import read_analysis
from swamp.backends import Particle, Ticket
from swamp.backends.autotune import Choice
from swamp.datasets.cifar import CifarSource, parse_records
from swamp.datasets.fashion import read_idx
from swamp.datasets.images import check_images, read_fitted
from swamp.datasets.problem import DataOptions, Normalise, TextOptions
from swamp.datasets.text.table_files import from_tables, read_table
from swamp.errors import SwampError
from swamp.files import digest, save_tensors, write_atomic
from swamp.masks import Mask
from swamp.recipes import configuration
from swamp.report.run_records import read_run
from swamp.runs.config import RunConfig
from swamp.runs.directory import PROVENANCE, add_checksum, read_json
from swamp.runs.snapshot_files import load_snapshot, save_snapshot
from swamp.runs.study import Study
from swamp.runs.study_queue import StudyDirectory
from swamp.runs.trajectory import TrajectoryWriter, read_trajectory
from swamp.runtime import archive, load
from swamp.runtime.archive import read, save
from swamp.runtime.dense import DenseNetwork
from swamp.runtime.rewrite import fold_batchnorm
from swamp.runtime.tracing import bake_mask, trace
from swamp.training import Seed
from swamp.training.snapshot import Snapshot

SECONDS = 10
_JSON_ODD: list[Any] = [
    None,
    True,
    -1,
    0,
    2**31,
    2**40,
    2**63,
    10**30,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x" * 2000,
]
_JSON_ODD += [
    [],
    {},
    [[]],
    [2**40],
    [-1],
    [0],
    {"a": 1},
    "\ud800",
    "../../x",
    "cpu",
    "float64",
    "rand",
    {"ref": "nothing"},
]
_BYTES_ODD = [
    b"\0",
    b"\xff",
    b"\xff\xff\xff\x7f",
    b"\xff" * 8,
    b"\0" * 8,
    b"NaN",
    b"1e999",
    b"null",
    b"-1",
    b"[" * 3000,
]
_BYTES_ODD += [b'"', b"{", b"}", b",", b"\n", b"\r", b"\\ud800", b"99999999999999999999", b"\xc3\x28", b"\x80\x04\x95"]


@dataclass(frozen=True)
class Loader:
    """A kind of file: a valid example, how it is read, and how its content is altered while the file stays valid."""

    name: str
    whole: bytes
    read: Callable[[Path], object]
    suffix: str = ""
    reseal: Callable[[bytes, random.Random], bytes] | None = None
    cost: int = 1
    """Relative cost of one case, by which the number of cases is divided."""


def loaders() -> dict[str, Loader]:
    """All loaders, each with a new valid file."""
    with tempfile.TemporaryDirectory() as place:
        found = [*_tensor_files(Path(place)), *_texts(), *_data(), *_exports(Path(place))]
    return {one.name: one for one in found}


def _tensor_files(place: Path) -> list[Loader]:
    weights = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(2, dtype=torch.bfloat16)}
    file = place / "file.safetensors"
    mask = Mask({"a.weight": torch.arange(12).reshape(3, 4) % 2 == 0})
    found: list[Loader] = []

    def add(name: str, read: Callable[[Path], object], sealed: Callable[[dict[str, Any]], Mapping[str, str]]) -> None:
        def reseal(data: bytes, chance: random.Random) -> bytes:
            return _resealed(data, chance, sealed)

        found.append(Loader(name, file.read_bytes(), read, ".safetensors", reseal))

    def no_seal(_: dict[str, Any]) -> Mapping[str, str]:
        return {}

    mask.save(file)
    add("mask", Mask.load, no_seal)
    Ticket(weights, 7).save(file)
    add("ticket", Ticket.load, lambda tensors: {"id": digest(tensors)})
    Particle(weights, 0, "ticket", "mask", 1, 7, (0.5, 0.25), 1.5).save(file)
    add("particle", Particle.load, lambda tensors: {"weights": digest(tensors)})
    save_snapshot(file, Snapshot(3, weights, {"a/x": weights["b"]}, {}, 0, (0.5,), 0.1, 2, {}), {"run": "run"})
    add("snapshot", load_snapshot, no_seal)
    writer = TrajectoryWriter(place / "path.safetensors")
    writer.add(0, weights)
    writer.add(1, weights)
    writer.finish()
    file = place / "path.safetensors"
    add("path", read_trajectory, no_seal)
    return found


def _cycle() -> dict[str, Any]:
    own = {"train": {"accuracy": 0.9}, "validation": None, "test": {"accuracy": 0.8, "nll": 0.4}}
    cost = {"steps": 10, "samples": 100, "flops": 1e6, "seconds": 0.5, "sequential_steps": 5}
    density = {"prunable": 1.0, "all": 1.0, "layers": {"a": 1.0}, "heads": {}}
    particles = [{**own, "index": index, "steps": 10, "seconds": 0.1, "loss": 0.3} for index in range(2)]
    barrier = {"pair": 0.01, "mean": -0.01}
    return {
        "cycle": 0,
        "sparsity": 0.0,
        "density": density,
        "nnz": 12,
        "prunable": 12,
        **own,
        "trunk": 0,
        "waves": [],
        "particles": particles,
    } | {"barrier": barrier, "metrics_before_bn_update": None, **cost, "total": cost, "warnings": [], "divergences": []}


def _texts() -> list[Loader]:
    config = RunConfig().to_json()
    lines = [_cycle(), _cycle() | {"cycle": 1, "sparsity": 0.5}]
    metrics = "".join(json.dumps(line) + "\n" for line in lines).encode()
    analysis = [{"key": f"barriers/cycle-0{i}", "settings": {"seed": 0}, "cycle": i, "sparsity": 0.5} for i in range(2)]
    toml = b"name = '{method}{seed}'\n[settings]\nlr = 0.1\nparticles = [2]\n"
    toml += b"[grid]\nseed = [0, 1]\nmethod = ['imp', 'swamp']\n"
    toml += b"[runs.x]\nmethod = 'lrr'\n[compare]\nmetric = 'nll'\nsparsities = [0.5]\n"
    listed = {"runs": {"a": config}, "compare": {"metric": "", "split": "test", "baseline": None, "sparsities": []}}
    choice = {"backend": "threads", "why": "fastest", "milliseconds": {"threads": 1.0}}
    mask = Mask({"a.weight": torch.ones(3, 4, dtype=torch.bool)})
    return [
        Loader("config", _json(config), RunConfig.load, ".json", _other_json),
        Loader(
            "record", _json(_cycle()), lambda path: Cycle.from_json(read_json(path), mask, {}), ".json", _other_json
        ),
        Loader("metrics", metrics, lambda path: read_run(_run(path, "metrics.jsonl")), ".jsonl", _other_lines),
        Loader(
            "run-config", _json(config), lambda path: read_run(_run(path, "config.json", metrics)), reseal=_other_json
        ),
        Loader(
            "analysis",
            b"".join(_json(add_checksum(line, _ANALYSIS)) + b"\n" for line in analysis),
            _analysis,
            ".jsonl",
            _other_signed_lines,
        ),
        Loader("study", toml, _study, ".toml"),
        Loader("study-folder", _json(add_checksum(listed)), lambda path: _opened_study(path), ".json", _other_signed),
        Loader("choice", _json(choice), lambda path: Choice.from_json(read_json(path)), ".json", _other_json),
    ]


def _run(path: Path, name: str, metrics: bytes = b"") -> Path:
    folder = path.parent / "run"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_bytes(_json(RunConfig().to_json()))
    (folder / "metrics.jsonl").write_bytes(metrics)
    (folder / name).write_bytes(path.read_bytes())
    return folder


def _analysis(path: Path) -> object:
    (path.parent / "analysis.jsonl").write_bytes(path.read_bytes())
    return read_analysis(path.parent)


def _study(path: Path) -> object:
    def started(recipe: str, task: str, model: str) -> RunConfig:
        return configuration(recipe or "digits-mlp", task, model)

    return Study.load(path).configurations(started, "study")


def _opened_study(path: Path) -> object:
    (path.parent / "study.json").write_bytes(path.read_bytes())
    return StudyDirectory.open(path.parent).states()


_ANALYSIS = {"path": "analysis.jsonl"}
_CIFAR = CifarSource("cifar", "", "", "", (), "", 2, 1, 1, 10, Normalise((0.5,), (0.5,)))


def _data() -> list[Loader]:
    from PIL import Image

    images = struct.pack(">IIII", 0x803, 3, 4, 5) + bytes(range(60))
    records = b"".join(bytes([n]) + bytes(3072) for n in (3, 9))
    found = [
        Loader("idx", images, lambda path: read_idx(path, 3), reseal=_other_header),
        Loader("idx-gz", gzip.compress(images), lambda path: read_idx(path, 3), ".gz", _other_gzip),
        Loader("cifar", records, lambda path: parse_records(path.read_bytes(), "data", _CIFAR, 2)),
    ]
    for kind in ("png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm"):
        stored = io.BytesIO()
        pixels = np.arange(8 * 9 * 3, dtype=np.uint8).reshape(8, 9, 3)
        Image.fromarray(pixels).save(stored, kind)
        found.append(Loader(f"image-{kind}", stored.getvalue(), _image, f".{kind}"))
    rows = [("a film", "good", 1), ("another, longer", "bad", 0)] * 4
    tables = {
        ".csv": "text,label\n" + "".join(f'"{text} {word}",{label}\n' for text, word, label in rows),
        ".tsv": "text\tlabel\n" + "".join(f"{text} {word}\t{label}\n" for text, word, label in rows),
        ".jsonl": "".join(json.dumps({"text": f"{t} {w}", "label": n}) + "\n" for t, w, n in rows),
    }
    for suffix, text in tables.items():
        changed = _other_lines if suffix == ".jsonl" else None
        found.append(Loader(f"table-{suffix[1:]}", text.encode(), _table, suffix, changed))
        if suffix == ".csv":
            found.append(Loader("table-numbers", text.encode(), lambda path: _table(path, "number"), suffix))
            found.append(Loader("table-stream", text.encode() * 9, lambda path: _table(path, "next token"), suffix))
    return found


def _image(path: Path) -> object:
    check_images([path])
    return read_fitted(path, 16)


def _table(path: Path, goal: Any = "class") -> object:
    options = DataOptions(text=TextOptions(length=8, tokenizer="words"))
    table = read_table(path)
    return from_tables("text-folder", {"train": table, "test": table}, goal, options, Seed(0))


def _exports(place: Path) -> list[Loader]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5))
    with torch.no_grad():
        for one in network.parameters():
            one.mul_(torch.rand(one.shape) < 0.3)
    file = place / "export.safetensors"
    save(trace(bake_mask(network), torch.randn(2, 1, 6, 6)), file)
    data = file.read_bytes()
    return [
        Loader("export", data, lambda path: read(path), ".safetensors", _other_program),
        Loader("export-dense", data, _dense, ".safetensors", _other_program),
        Loader("export-sparse", data, _sparse, ".safetensors", _other_program, 20),
    ]


def _dense(path: Path) -> object:
    return _called(DenseNetwork(fold_batchnorm(read(path))))


def _sparse(path: Path) -> object:
    # As for a user: kernels are built for the content of the file.
    return _called(load(path, batch=2))


def _called(module: nn.Module) -> object:
    program = cast(Any, module).program
    try:
        return cast(Any, module).execute(program.example_inputs(2), 2)
    except (RuntimeError, SwampError) as error:
        return error


# Changes


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def changed_json(value: Any, chance: random.Random) -> Any:
    """The values with one of them, at any depth, replaced, removed, or duplicated."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        way = chance.random()
        if way < 0.1:
            return {name: inner for name, inner in value.items() if name != key}
        if way < 0.2:
            return {**value, chance.choice(["", "x", key + "x", "\ud800"]): value[key]}
        return {**value, key: changed_json(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        place = chance.randrange(len(value))
        if chance.random() < 0.2:
            return chance.choice([value[:place], value[place:] * 2, value * 3])
        return [*value[:place], changed_json(value[place], chance), *value[place + 1 :]]
    return chance.choice(_JSON_ODD)


def _other_json(data: bytes, chance: random.Random) -> bytes:
    return _json(changed_json(json.loads(data), chance))


def _other_lines(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines()
    place = chance.randrange(len(lines))
    lines[place] = _other_json(lines[place], chance)
    return b"\n".join(lines) + b"\n"


def _other_signed(data: bytes, chance: random.Random, provenance: Mapping[str, str] | None = None) -> bytes:
    values = json.loads(data)
    values.pop(PROVENANCE)
    changed = changed_json(values, chance)
    return _json(add_checksum(changed, provenance) if isinstance(changed, dict) else changed)


def _other_signed_lines(data: bytes, chance: random.Random) -> bytes:
    lines = data.splitlines()
    place = chance.randrange(len(lines))
    lines[place] = _other_signed(lines[place], chance, _ANALYSIS)
    return b"\n".join(lines) + b"\n"


def _other_header(data: bytes, chance: random.Random) -> bytes:
    sizes = [chance.choice([0, 1, 3, 4, 5, 2**16, 2**31, 2**32 - 1]) for _ in range(3)]
    return data[:4] + struct.pack(">III", *sizes) + data[16:]


def _other_gzip(data: bytes, chance: random.Random) -> bytes:
    inner = gzip.decompress(data)
    return gzip.compress(mutated(inner, chance) if chance.random() < 0.5 else _other_header(inner, chance))


def _parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _resealed(data: bytes, chance: random.Random, sealed: Callable[[dict[str, Any]], Mapping[str, str]]) -> bytes:
    """A safetensors file with another header and a matching checksum."""
    header, body = _parts(data)
    words = header.get("__metadata__", {})
    way = chance.random()
    if words and way < 0.6:
        name = chance.choice(list(words))
        text = words[name]
        try:
            words[name] = json.dumps(changed_json(json.loads(text), chance))
        except ValueError:
            words[name] = chance.choice(["", "x", "nan", "1e999", "-1", "9" * 40, "[" * 2000, text + text])
        if chance.random() < 0.1:
            del words[name]
    else:
        header = changed_json(header, chance)
    if isinstance(header, dict) and isinstance(header.get("__metadata__"), dict):
        whole = _assembled(header, body)
        try:
            tensors, words = safetensors.torch.load(whole), header["__metadata__"]
            words |= sealed(tensors)
            words.pop(files._CHECKSUM, None)
            words[files._CHECKSUM] = files._checksum(tensors, words)
        except Exception:
            return whole
    return _assembled(header, body)


def _assembled(header: Any, body: bytes) -> bytes:
    text = _json(header)
    return struct.pack("<Q", len(text)) + text + body


def _other_program(data: bytes, chance: random.Random) -> bytes:
    stored = dict(safetensors.torch.load(data))
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        described = json.loads(zlib.decompress(stored["program"].numpy().tobytes()))
        if chance.random() < 0.8:
            text = zlib.compress(_json(changed_json(described, chance)))
            stored["program"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        else:
            name = chance.choice(["gaps", "rest"])
            inner = mutated(zlib.decompress(stored[name].numpy().tobytes()), chance)
            stored[name] = torch.frombuffer(bytearray(zlib.compress(inner)), dtype=torch.uint8)
        save_tensors(Path(file.name), stored, {"format": archive._FORMAT, "digest": digest(stored)})
        return Path(file.name).read_bytes()


def mutated(data: bytes, chance: random.Random) -> bytes:
    """The bytes with one to four changes: bits, odd values, cuts, insertions, copies."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(changed) + 1)
        way = chance.randrange(6)
        odd = chance.choice(_BYTES_ODD)
        if way == 0 and changed:
            changed[place % len(changed)] ^= 1 << chance.randrange(8)
        elif way == 1:
            changed[place : place + len(odd)] = odd
        elif way == 2:
            changed[place:place] = odd
        elif way == 3:
            del changed[place : place + chance.choice([1, 4, 64, len(changed)])]
        elif way == 4:
            changed[place:place] = changed[place : place + chance.randint(1, 64)]
        else:
            changed[place : place + 1] = bytes([chance.randrange(256)])
    return bytes(changed)


def altered(loader: Loader, chance: random.Random) -> bytes:
    """An altered file; half of them are valid, if the loader supports it."""
    return (
        loader.reseal(loader.whole, chance)
        if loader.reseal and chance.random() < 0.5
        else mutated(loader.whole, chance)
    )


BOMBS: dict[str, Callable[[], dict[str, bytes]]] = {
    "idx": lambda: {"claims 2^40": struct.pack(">IIII", 0x803, 2**14, 2**13, 2**13)},
    "idx-gz": lambda: {"gzip bomb": _gzip_bomb()},
    "mask": lambda: {"header of 2^40": struct.pack("<Q", 2**40) + b"{}", **_mask_bombs()},
    "config": lambda: {"nested": b"[" * 200_000, "long": b"[" + b"1," * 2_000_000 + b"1]"},
    "study": lambda: {"nested": b"a = " + b"[" * 200_000},
    "image-png": lambda: {"pixels": _png_bomb()},
}


def _gzip_bomb() -> bytes:
    one = gzip.compress(bytes(2**24), 9)
    return one * 256  # concatenated members: 4 GiB in 4 MiB


def _mask_bombs() -> dict[str, bytes]:
    packed = safetensors.torch.save(
        {"a": torch.zeros(1, dtype=torch.uint8)},
        {"format": "swamp-mask-1", "shapes": json.dumps({"a": [2**20, 2**20]}), "digest": "x"},
    )
    return {"2^40 weights": packed}


def _png_bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


# Verdicts


def tried(loader: Loader, data: bytes, folder: Path) -> str:
    """The outcome: loaded, refused, or a description of the fault."""
    path = folder / f"file{loader.suffix}"
    path.write_bytes(data)
    began = time.monotonic()
    try:
        loader.read(path)
        outcome = "loaded"
    except SwampError as error:
        outcome = "refused" if len(str(error)) > 20 else f"says next to nothing: {error}"
    except Exception:
        outcome = traceback.format_exc()
    if time.monotonic() - began > SECONDS:
        return f"took {time.monotonic() - began:.0f} s"
    return outcome


def campaign(loader: Loader, cases: int, seed: int) -> Counter[str]:
    """Try `cases` altered files; faults are printed."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        files = [loader.whole, *(BOMBS[loader.name]().values() if loader.name in BOMBS else ())]
        for number in range(max(cases, len(files))):
            chance = random.Random(f"{loader.name} {seed} {number}")
            data = files[number] if number < len(files) else altered(loader, chance)
            outcome = tried(loader, data, Path(folder))
            if number == 0 and outcome != "loaded":
                outcome = f"the whole file: {outcome}"
            if outcome not in ("loaded", "refused"):
                print(f"{loader.name}, case {number}: {data[:200]!r}: {outcome}", flush=True)
            counts[outcome if outcome in ("loaded", "refused") else "fault"] += 1
    return counts


def main() -> int:
    """Run the campaign; returns 1 if there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plain", action="store_true", help="without atheris, where it is installed too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    ways = [False, True] if _has_atheris() and not given.plain else [False]
    found = loaders()
    each = given.cases / (sum(1 / loader.cost for loader in found.values()) * len(ways))
    kept = Path("build/faults") / f"loaders-{given.seed}-{given.cases}{'-plain' if given.plain else ''}.json"
    done: dict[str, dict[str, int]] = json.loads(kept.read_text()) if kept.exists() else {}
    total: Counter[str] = Counter()
    for guided, (name, loader) in itertools.product(ways, found.items()):
        key = f"{name} (atheris)" if guided else name
        if key not in done:
            cases = math.ceil(each / loader.cost)
            done[key] = _guided(name, cases, given.seed) if guided else _plain(loader, cases, given.seed)
            write_atomic(kept, json.dumps(done).encode())
        total += Counter(done[key])
        print(f"{key}: {dict(done[key])}", flush=True)
    faults = sum(count for outcome, count in total.items() if outcome not in ("loaded", "refused"))
    engine = "half by atheris" if len(ways) > 1 else "by the plain mutator"
    tried_all = f"{sum(total.values())} tried ({engine})"
    print(f"files: {tried_all}, {total['loaded']} loaded, {total['refused']} refused, {faults} faults")
    return int(faults > 0)


def _has_atheris() -> bool:
    import importlib.util

    return importlib.util.find_spec("atheris") is not None


def _plain(loader: Loader, cases: int, seed: int) -> Counter[str]:
    """Try random bytes in a forked process, so that memory and crashes do not affect other loaders."""
    sys.stdout.flush()
    with tempfile.NamedTemporaryFile() as found:
        child = os.fork()
        if child == 0:
            limit_memory()
            Path(found.name).write_text(json.dumps(campaign(loader, cases, seed)))
            os._exit(0)
        os.waitpid(child, 0)
        text = Path(found.name).read_text()
    return Counter(json.loads(text)) if text else Counter({"died": 1})


def _guided(name: str, cases: int, seed: int) -> Counter[str]:
    """Try bytes from atheris in a new process, as atheris must instrument modules before they are imported."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("guided.py")), name, str(cases), str(seed)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=False,
    )
    text = done.stdout.decode(errors="replace")
    counts = Counter(re.findall(r"^@(loaded|refused|fault)$", text, re.M))
    ended = sum(counts.values()) >= cases
    if not ended:
        counts["died"] += 1
    if counts["fault"] or not ended:
        print(re.sub(r"^@\w+\n", "", text, flags=re.M)[-6000:], flush=True)
    return counts


if __name__ == "__main__":
    sys.exit(main())
