"""A GPU that is none: tensors that say that they are on cuda:0, lie on the CPU, and meet none that do not say so.

What runs on it has every tensor where it belongs and computes what it does on the CPU. `waits` counts what would make
the CPU wait for a real one. Its speed, its kernels, streams and graphs are no part of it.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import torch
from torch.utils import _foreach_utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from swamp.backends.vmapped_step import VmappedStep

CUDA = torch.device("cuda", 0)
waits: Counter[str] = Counter()
aten = torch.ops.aten
MOVES = {aten.copy_.default, aten._to_copy.default}
INDEXES = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
READS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.nonzero.default,
}
_to, _tensor, _gradients = torch.Tensor.to, torch.tensor, VmappedStep._masked_gradients
_grouped = _foreach_utils._group_tensors_by_device_and_dtype


class OnGpu(torch.Tensor):
    """Shares its memory with `inner`, a tensor on the CPU. To torch's own C++ it is one, so methods say what it is."""

    @staticmethod
    def __new__(cls, inner):
        self = torch.Tensor._make_subclass(cls, inner, False)
        self.inner = inner
        return self

    __torch_function__ = torch._C._disabled_torch_function_impl
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    def __repr__(self):
        return f"OnGpu({self.inner})"

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            copied = OnGpu(self.inner.detach().clone()).requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True
            memo[id(self)] = copied
        return memo[id(self)]

    def __array__(self, *args, **kwargs):
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    numpy = __array__

    def cpu(self):
        return self.to("cpu")

    def tolist(self):
        waits["tolist"] += 1
        return self.inner.tolist()


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        waits["to the CPU"] += 1
        return tensor.inner.clone()

    @staticmethod
    def backward(ctx, gradient):
        return OnGpu(gradient)


class _Mode(TorchDispatchMode):
    # Within vmap torch's C++ makes tensors of its own where it takes ours to be: nothing can be told apart there.
    vmapped = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Generator(torch.Generator):
    def __new__(cls, device="cpu"):
        self = super().__new__(cls)
        self.claimed = torch.device(device)
        return self

    device = property(lambda self: self.claimed)


def _gpu(device) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _run(func, args, kwargs):
    leaves, spec = tree_flatten((args, kwargs))
    ours = [leaf for leaf in leaves if isinstance(leaf, OnGpu)]
    others = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and not isinstance(leaf, OnGpu)]
    to_gpu = bool(ours) if "device" not in kwargs else _gpu(kwargs["device"])
    if func is aten.copy_.default:
        to_gpu = isinstance(args[0], OnGpu)
    if _Mode.vmapped:
        to_gpu = True
    else:
        _judge(func, args, kwargs, ours, others, to_gpu)

    def there(leaf):
        if isinstance(leaf, OnGpu):
            return leaf.inner
        return torch.device("cpu") if isinstance(leaf, torch.device) else leaf

    known = {id(one.inner): one for one in ours} | {id(one): one for one in others}

    def back(leaf):
        if not isinstance(leaf, torch.Tensor):
            return leaf
        return known.get(id(leaf)) if id(leaf) in known else OnGpu(leaf) if to_gpu else leaf

    args, kwargs = tree_unflatten([there(leaf) for leaf in leaves], spec)
    return tree_map(back, func(*args, **kwargs))


def _judge(func, args, kwargs, ours, others, to_gpu) -> None:
    if func in MOVES:
        given = args[1] if func is aten.copy_.default else args[0]
        at_once = kwargs.get("non_blocking") or args[2:3] == (True,)
        if isinstance(given, OnGpu) != to_gpu and not at_once:
            waits[f"{func}, {'to' if to_gpu else 'from'} the GPU"] += 1
        return
    by_mask = func in INDEXES and any(one is not None and one.dtype == torch.bool for one in args[1])
    if ours and (func in READS or by_mask):
        waits[str(func)] += 1
    if func in INDEXES and isinstance(args[0], OnGpu):
        others = [one for one in args[2:3] if not isinstance(one, OnGpu)]  # indices may lie on the CPU
    strangers = [tuple(one.shape) for one in others if one.dim()]
    if ours and strangers:
        raise RuntimeError(f"{func}: expected all tensors to be on cuda:0, but found some on the CPU, of {strangers}")


def _moved(self, *args, **kwargs):
    """Tensor.to."""
    for one in args:
        if isinstance(one, torch.Tensor):
            kwargs |= {"device": one.device, "dtype": one.dtype}
        elif isinstance(one, str | torch.device):
            kwargs["device"] = one
        elif isinstance(one, torch.dtype):
            kwargs["dtype"] = one
    device = kwargs.pop("device", None)
    if isinstance(self, OnGpu) and device is not None and not _gpu(device):
        self = _Down.apply(self)
    elif not isinstance(self, OnGpu) and _gpu(device):
        kwargs["device"] = CUDA
    return _to(self, **kwargs) if kwargs else self


def _made(values, *, device=None, **kwargs):
    """torch.tensor."""
    made = _tensor(values, **kwargs)
    if not _gpu(device):
        return made
    waits["torch.tensor"] += 1
    return OnGpu(made)


def _stacked_gradients(step, *args):
    _Mode.vmapped = not step.multi_stream
    try:
        return _gradients(step, *args)
    finally:
        _Mode.vmapped = False


def _by_device(*args, **kwargs):
    """torch's C++ groups them, to which they are all on the CPU."""
    groups = _grouped(*args, **kwargs)
    return {(CUDA if isinstance(group[0][0][0], OnGpu) else key[0], key[1]): group for key, group in groups.items()}


@contextmanager
def pretended(monkeypatch) -> Iterator[None]:
    """Inside the block `cuda` and `cuda:0` are such a GPU; nothing is compiled there, and no graph captured."""
    monkeypatch.setattr(torch, "Generator", _Generator)
    monkeypatch.setattr(torch, "tensor", _made)
    monkeypatch.setattr(torch.Tensor, "to", _moved)
    monkeypatch.setattr("torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype", _by_device)
    # A module moves by `parameter.data = moved` otherwise, which leaves a parameter the type it had.
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)
    monkeypatch.setattr(VmappedStep, "_masked_gradients", _stacked_gradients)
    monkeypatch.setattr("swamp.backends.compiled._inductor", lambda function, inputs: function)
    monkeypatch.setattr("swamp.backends.vmapped_state.CudaGraph", lambda step, state: step)
    stream = SimpleNamespace(wait_stream=lambda other: None)
    answers = {
        "_lazy_init": None,
        "device_count": 1,
        "get_device_name": "a pretended GPU",
        "manual_seed": None,
        "set_rng_state": None,
        "synchronize": None,
        "device": nullcontext(),
        "Stream": stream,
        "current_stream": stream,
        "stream": nullcontext(),
        "is_current_stream_capturing": False,
    }
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, answer=answer, **kwargs: answer)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda *args: torch.get_rng_state())
    waits.clear()
    with _Mode():
        yield
