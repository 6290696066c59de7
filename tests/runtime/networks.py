"""Networks and helpers for the tests of the runtime."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from swamp.files import digest
from swamp.runtime.kernels import KernelConfig, KernelExecutor
from swamp.runtime.program import BATCH, Input, Node, Program, Ref, Size
from swamp.runtime.rewrite import fold_batchnorm
from swamp.runtime.tracing import trace
from swamp.training import Seed
from swamp.training.rng import isolated


def pruned_(model: nn.Module, sparsity: float, seed: int = 0) -> nn.Module:
    """The model in eval mode, with random BatchNorm statistics and this fraction of zeros in its weights."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            size = module.num_features
            module.running_mean.copy_(torch.randn(size, generator=generator) / 4)
            module.running_var.copy_(torch.rand(size, generator=generator) + 0.5)
            module.weight.data.copy_(torch.rand(size, generator=generator) + 0.5)
            module.bias.data.copy_(torch.randn(size, generator=generator) / 4)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data[torch.rand(parameter.shape, generator=generator) < sparsity] = 0
    return model.eval()


def built(make, sparsity: float = 0.8, seed: int = 0) -> nn.Module:
    with isolated(Seed(seed)):
        return pruned_(make(), sparsity, seed)


def images() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(8 * 16, 5),
    )


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def run(program: Program, inputs: Tensor, block: int, dense: frozenset[str] = frozenset()) -> Tensor:
    """The second output of the kernels with blocks of `block`: what a call leaves in the arena must not matter."""
    executor = KernelExecutor(fold_batchnorm(program), KernelConfig(block, dense))
    with torch.no_grad():
        executor([inputs + 1])
        return executor([inputs])


_CALLS = {
    nn.Linear: lambda layer: ("linear.default",),
    nn.Conv1d: lambda layer: ("conv1d.default", *_window(layer)),
    nn.Conv2d: lambda layer: ("conv2d.default", *_window(layer)),
    nn.BatchNorm2d: lambda layer: ("batch_norm.default", False, layer.momentum, layer.eps, False),
    nn.MaxPool2d: lambda layer: ("max_pool2d.default", *([size] * 2 for size in _pool(layer))),
    nn.AvgPool2d: lambda layer: ("avg_pool2d.default", *([size] * 2 for size in _pool(layer))),
    nn.Flatten: lambda layer: ("flatten.using_ints", layer.start_dim),
    nn.ReLU: lambda layer: ("relu.default",),
    nn.GELU: lambda layer: ("gelu.default",),
}
"""Layer -> its operator, and the arguments after its parameters and buffers."""


def _window(layer: nn.Conv1d | nn.Conv2d) -> tuple[object, ...]:
    return list(layer.stride), list(layer.padding), list(layer.dilation), layer.groups


def _pool(layer: nn.MaxPool2d | nn.AvgPool2d) -> tuple[int, int, int]:
    return layer.kernel_size, layer.stride, layer.padding


def chained(model: nn.Sequential, shape: Sequence[int]) -> Program:
    """The program of a sequence of the layers in `_CALLS`, for examples of this shape: `trace` takes half a second."""
    values, nodes = {name: x.detach() for name, x in model.state_dict().items() if x.is_floating_point()}, []
    last = Ref("input")
    for name, layer in model.named_children():
        target, *arguments = _CALLS[type(layer)](layer)
        own = [Ref(f"{name}.{one}") if f"{name}.{one}" in values else None for one in ("weight", "bias")]
        if isinstance(layer, nn.BatchNorm2d):
            own += [Ref(f"{name}.running_mean"), Ref(f"{name}.running_var")]
        kwargs = {"approximate": layer.approximate} if isinstance(layer, nn.GELU) else {}
        nodes.append(Node(f"layer_{name}", target, (last, *(own if own[0] else ()), *arguments), kwargs, name))
        last = Ref(nodes[-1].name)
    inputs = (Input("input", (BATCH, *shape), torch.float32),)
    return Program(inputs, tuple(nodes), last, values, {"input": Ref("input")}, {BATCH: Size(1, None, 2)})


_TRACED: dict[object, Program] = {}


def traced(model: nn.Module, inputs: Tensor) -> Program:
    """As `trace`; equal modules and weights are traced once, and a sequence of plain layers is written down."""
    if isinstance(model, nn.Sequential) and {type(layer) for layer in model} <= set(_CALLS):
        return chained(model, inputs.shape[1:])
    modules = [
        (name, type(module).__qualname__, [(key, repr(value)) for key, value in vars(module).items() if key[0] != "_"])
        for name, module in model.named_modules()
    ]
    key = (repr(modules), digest(model.state_dict()), inputs.shape[1:], inputs.dtype)
    if key not in _TRACED:
        _TRACED[key] = trace(model, torch.cat([inputs, inputs]))
    return _TRACED[key]


def assert_same(model: nn.Module, inputs: Tensor, block: int, tolerance: float = 1e-4) -> None:
    """The kernels compute what the model computes."""
    with torch.no_grad():
        expected = model(inputs)
    output = run(traced(model, inputs), inputs, block)
    assert output.shape == expected.shape
    assert (output - expected).abs().max() <= tolerance * max(1, expected.abs().max())
