"""The C kernels: compiled once for each machine, and called to execute the fused regions of a program."""

import ctypes
import hashlib
import math
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from swamp.errors import SwampError
from swamp.files import write_atomic
from swamp.runtime.arena import LINE
from swamp.runtime.dense import DenseNetwork
from swamp.runtime.lowering import LoweredRegion, lower
from swamp.runtime.program import Node, Program, Ref, Values, torch_call
from swamp.runtime.regions import FusedRegion, partition

SOURCE = Path(__file__).with_name("kernels.c")
_FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC", "-lm")

# Compiling


class CompilerError(SwampError):
    """There is no C compiler, or it cannot compile the kernels."""


@cache
def kernel_library() -> Any:
    """Return the compiled kernels as a ctypes library, from the cache if they were compiled for this machine before.

    The compiler is $CC, cc, gcc or clang, with the flags in $SWAMP_KERNEL_FLAGS after those of swamp. The cache is
    $SWAMP_CACHE/kernels, by default ~/.cache/swamp/kernels. The name of a file contains two digests. The first covers
    source, compiler, flags and processor, so that machines can share a cache. The second covers the file's content, so
    that a damaged file is recognised and compiled again. Folders and files that other users can write to are not used,
    because the code in them is executed.

    Raises:
        CompilerError: There is no compiler, it fails, or no folder can be used.
    """
    compiler = _compiler()
    try:
        return _load_library(_compiled(compiler, (*_FLAGS, "-fopenmp", *_added_flags())))
    except CompilerError:
        # Apple's compiler has no OpenMP; without it, the kernels use one thread.
        return _load_library(_compiled(compiler, (*_FLAGS, *_added_flags())))


def _added_flags() -> list[str]:
    return shlex.split(os.environ.get("SWAMP_KERNEL_FLAGS", ""))


def _compiler() -> str:
    chosen = os.environ.get("CC", "")
    path = next((path for name in (chosen, "cc", "gcc", "clang") if name and (path := shutil.which(name))), None)
    if path is None or chosen == "none":
        raise CompilerError(
            "there is no C compiler (cc, gcc, clang or $CC); on Debian: apt install gcc. Without a compiler, sparse "
            "layers run as CSR products of torch if these are faster than dense layers."
        )
    return path


def _compiled(compiler: str, flags: tuple[str, ...]) -> Path:
    """The path of the compiled library; it is compiled now if it is not in a cache."""
    version = subprocess.run([compiler, "--version"], capture_output=True, check=False).stdout
    key = _digest(b"\0".join([SOURCE.read_bytes(), version, " ".join(flags).encode(), _processor()]))
    for folder in filter(_is_usable, _cache_folders()):
        for path in folder.glob(f"{key}-*.so"):
            if not _is_private(path):
                continue
            if path.stem.endswith(_digest(path.read_bytes())):
                return path
            path.unlink(missing_ok=True)
        data = _compile(compiler, flags)
        path = folder / f"{key}-{_digest(data)}.so"
        try:
            write_atomic(path, data)
            return path
        except SwampError:
            continue
    tried = " and ".join(map(str, _cache_folders()))
    raise CompilerError(
        f"the compiled kernels need a folder that only you can write to, and none of {tried} is one; set SWAMP_CACHE "
        "to such a folder."
    )


def _compile(compiler: str, flags: tuple[str, ...]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "kernels.so"
        command = [compiler, str(SOURCE), "-o", str(out), *flags]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not out.exists():
            raise CompilerError(f"{compiler} could not compile the kernels: {done.stderr.strip()[:500]}")
        return out.read_bytes()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _cache_folders() -> list[Path]:
    chosen = os.environ.get("SWAMP_CACHE", "")
    default = Path(os.environ.get("XDG_CACHE_HOME", "") or "~/.cache") / "swamp"
    # Another user may have created a folder of this name in /tmp before: see `_is_private`.
    temporary = Path(tempfile.gettempdir()) / f"swamp-{os.getuid() if hasattr(os, 'getuid') else 0}"
    return [folder.expanduser() / "kernels" for folder in (Path(chosen) if chosen else default, temporary)]


def _is_usable(folder: Path) -> bool:
    """Whether the folder exists or can be created, and other users cannot replace its content."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        folder = folder.resolve()
        return _is_private(folder) and all(_is_private(above, sticky=True) for above in folder.parents)
    except OSError:
        return False


def _is_private(path: Path, *, sticky: bool = False) -> bool:
    """Whether only this user and root can write to a path; sticky: also accept folders such as /tmp.

    In a sticky folder, other users can create files but not replace those of this user.
    """
    if not hasattr(os, "getuid"):
        return True  # systems without these permissions keep caches in the profile of the user
    status = path.stat()
    writable = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    protected = not writable or (sticky and bool(status.st_mode & stat.S_ISVTX))
    return status.st_uid in (0, os.getuid()) and protected


def _processor() -> bytes:
    """The properties of the processor on which the result of -march=native depends."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}".encode()
    kept = ("flags", "Features", "model name", "cpu family", "model\t", "CPU part")
    return "\n".join(dict.fromkeys(line for line in lines if line.startswith(kept))).encode()


def _load_library(path: Path) -> Any:
    try:
        library: Any = ctypes.CDLL(str(path))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise CompilerError(
            f"the compiled kernels {path} cannot be loaded ({error}); they will be compiled again."
        ) from error
    library.swamp_simd_width.restype = library.swamp_fields.restype = ctypes.c_int64
    address, number = ctypes.c_void_p, ctypes.c_int64
    library.swamp_run.argtypes = [address, number, address, number, address, number, number, number, address]
    library.swamp_run.restype = None
    return library


# Executing


@dataclass(frozen=True)
class KernelConfig:
    """How the kernels execute a program at one batch size."""

    block: int
    """Examples that are stored interleaved and processed at once."""
    dense: frozenset[str] = frozenset()
    """Names of layers that torch executes."""
    one_thread: bool = False
    """Use one thread. Several threads are slower for small networks and on a busy machine."""

    def __str__(self) -> str:
        return f"kernels, blocks of {self.block}" + (", one thread" if self.one_thread else "")


class KernelExecutor:
    """Executes a program with the kernels, and its fallback ops in torch. Concurrent calls are executed one by one."""

    def __init__(self, program: Program, config: KernelConfig) -> None:
        self.program, self.config = program, config
        self.lock = threading.Lock()
        library = kernel_library()
        self.calls: list[Callable[[Values], None]] = []
        self.regions: list[RegionExecutor] = []
        for part in partition(program, config.dense):
            if isinstance(part, Node):
                self.calls.append(torch_call(part))
                continue
            self.regions.append(RegionExecutor(library, program, part, config))
            self.calls.append(self.regions[-1])

    def __call__(self, inputs: Sequence[Tensor]) -> Any:
        """The output of the network."""
        values = self.program.start(inputs)
        with self.lock:
            for call in self.calls:
                call(values)
        return self.program.result(values)

    def profile(self, inputs: Sequence[Tensor], rounds: int = 5) -> dict[str, float]:
        """Node name -> least seconds of its kernel steps, including copies of its inputs to another layout."""
        least: dict[str, float] = {}
        for _ in range(rounds):
            for region in self.regions:
                region.times = np.zeros(len(region.lowered.steps))
            self(inputs)
            seconds: dict[str, float] = {}
            for region in self.regions:
                for name, total in zip(region.lowered.names, region.times, strict=True):
                    seconds[name] = seconds.get(name, 0.0) + float(total)
                region.times = None
            least = {name: min(total, least.get(name, total)) for name, total in seconds.items()}
        return least


class RegionExecutor:
    """Executes the kernel steps of a region, with an arena for each thread."""

    def __init__(self, library: Any, program: Program, region: FusedRegion, config: KernelConfig) -> None:
        self.library, self.program, self.region, self.config = library, program, region, config
        self.arena = torch.zeros(0)
        self.times: Any = None
        """Total seconds of each kernel step; None: times are not measured."""
        self.rows = 0
        """Examples of the first call. For a linear layer on tokens, each token is one."""

    @cached_property
    def lowered(self) -> LoweredRegion:
        """The kernel steps, in smaller blocks than configured if the first call had fewer rows."""
        block = self.config.block
        if self.rows:
            block = min(block, 1 if self.rows == 1 else -(-self.rows // LINE) * LINE)
        return lower(self.program, self.region, block, self.library.swamp_simd_width())

    def __call__(self, values: Values) -> None:
        """Execute the region on its inputs in `values`, and add its outputs to `values`."""
        region = self.region
        # The negative of a tensor can be a view with a flag, which the memory does not show.
        inputs: list[Tensor] = [values[name].resolve_neg().contiguous() for name in region.inputs]
        lead = self._check(inputs)
        outputs = [torch.empty((*lead, *region.trailing[name]), dtype=torch.float32) for name in region.outputs]
        self.rows = self.rows or lead.numel()
        lowered = self.lowered
        threads = 1 if self.config.one_thread else torch.get_num_threads()
        if len(self.arena) < threads * lowered.arena_size:
            # torch's memory starts on a cache line: reading a vector that crosses two lines takes twice as long.
            self.arena = torch.zeros(threads * lowered.arena_size)
        tensors = (ctypes.c_void_p * (len(inputs) + len(outputs)))(*(x.data_ptr() for x in (*inputs, *outputs)))
        self.library.swamp_run(
            lowered.steps.ctypes.data,
            len(lowered.steps),
            self.arena.data_ptr(),
            lowered.arena_size,
            ctypes.addressof(tensors),
            lead.numel(),
            lowered.block,
            threads,
            None if self.times is None else self.times.ctypes.data,
        )
        values.update(zip(region.outputs, outputs, strict=True))

    def _check(self, inputs: Sequence[Tensor]) -> torch.Size:
        """The leading dimensions, which all inputs share.

        Raises SwampError if an input has another size, for which the kernels would read other memory. This cannot
        happen unless an operator computes shapes that do not follow from the shapes of its inputs.
        """
        extents = [self.region.extents[name] for name in self.region.inputs]
        leads = [x.shape[:1] if len(extent) == 3 else x.shape[:-1] for x, extent in zip(inputs, extents, strict=True)]
        for name, x, extent in zip(self.region.inputs, inputs, extents, strict=True):
            fits = x.numel() == leads[0].numel() * math.prod(extent) and x.dtype == torch.float32
            if not fits or x.device.type != "cpu" or len(set(leads)) > 1:
                raise SwampError(
                    f"the kernels cannot read {name!r} of shape {tuple(x.shape)}, {x.dtype} on {x.device}: they expect "
                    f"{extent} of float32 on the CPU for each of {leads[0].numel()} examples."
                )
        return leads[0]


class CsrNetwork(DenseNetwork):
    """A program whose linear layers are sparse matrix products of torch, for machines without a compiler."""

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._calls = [(node, _csr_call(node, program) if node.op == "linear" else call) for node, call in self._calls]


def to_csr_tensor(matrix: Tensor) -> Tensor:
    """The matrix in the CSR layout of torch."""
    with warnings.catch_warnings():
        # torch warns once a process that the layout is in beta.
        warnings.simplefilter("ignore")
        return matrix.to_sparse_csr()


def _csr_call(node: Node, program: Program) -> Callable[[Values], None]:
    constant = isinstance(node.args[1], Ref) and node.args[1].name in program.tensors
    if not constant or not bool((program.tensors[node.args[1].name] == 0).any()):
        return torch_call(node)
    weight = to_csr_tensor(program.tensors[node.args[1].name])

    def call(values: Values) -> None:
        inputs, bias = values[node.args[0].name], node.args[2] if len(node.args) > 2 else None
        product = (weight @ inputs.reshape(-1, inputs.shape[-1]).T).T
        if bias is not None:
            product = product + values[bias.name]
        values[node.name] = product.reshape(*inputs.shape[:-1], -1)

    return call
