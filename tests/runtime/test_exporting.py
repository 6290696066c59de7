"""swamp.export: any network that torch.export takes leaves with the same outputs, or is refused by one line."""

import dataclasses
import warnings
from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import swamp
from swamp.errors import SwampError
from swamp.runtime import checks, network, state_dict
from swamp.runtime.benchmark import benchmark
from swamp.runtime.checks import difference, differing_nodes
from swamp.runtime.flat_model import FlatModel, call_arguments
from swamp.runtime.kernels import KernelConfig, KernelExecutor
from swamp.runtime.program import Outputs
from swamp.runtime.regions import partition
from swamp.runtime.rewrite import fold_batchnorm, remove_dead_units
from swamp.runtime.tracing import trace

from .networks import built, numbers, pruned_


class Recurrent(nn.Module):
    def __init__(self, kind) -> None:
        super().__init__()
        self.rnn, self.head = kind(4, 16, batch_first=True), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(20, 8, mode="sum"), nn.Linear(8, 2)

    def forward(self, ids):
        return self.head(self.bag(ids))


class Positions(nn.Module):
    """Tensors that are made in the network."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.places, self.head = nn.Embedding(20, 8), nn.Embedding(6, 8), nn.Linear(8, 2)

    def forward(self, ids):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        return self.head((x * torch.full_like(x, 0.5)).mean(1)) + torch.eye(2)[0]


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        y = self.a(x)
        y += x
        y[:, 0] = 0
        return self.b(functional.dropout(functional.relu_(y), 0.5, self.training))


class TokensBySize(nn.Module):
    """Views with sizes that depend on the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x):
        batch, tokens, _ = x.shape
        y = functional.relu(self.a(x.reshape(batch * tokens, -1)))
        return self.b(y.view(tokens, batch, 6).transpose(0, 1))


class EveryOtherRow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return self.b(functional.relu(self.a(x[:, :, ::2])))


class Wide(nn.Module):
    """A value that is not float32 between layers that are."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(9, 9), nn.Linear(9, 9)

    def forward(self, x):
        return self.b(functional.relu(self.a(x).double()).float()), (x > 0).long() + 1


def tokens() -> nn.Module:
    """The columns of the last layer stand for tokens first, and one unit of the first layer is dead."""
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Flatten(1), nn.Linear(30, 3))
    model[0].weight.data[2] = 0
    return model


def normed_tokens() -> nn.Module:
    """BatchNorm over dimension 1, which is not that of the layer's outputs."""
    return nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Linear(6, 3))


def normed_image() -> nn.Module:
    """BatchNorm over the rows of an image without a batch, as many as it has channels."""
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm1d(6), nn.Conv2d(6, 2, 3))


def images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 8, 3), *layers, nn.Flatten(), nn.LazyLinear(2))


IDS = torch.randint(0, 20, (4, 6), generator=torch.Generator().manual_seed(0))
IMAGES = numbers(4, 1, 8, 8)
NETWORKS: dict[str, tuple[Any, Any]] = {
    "relu in place": (lambda: images(nn.ReLU(inplace=True)), IMAGES),
    "silu in place": (lambda: images(nn.SiLU(inplace=True)), IMAGES),
    "hardswish": (lambda: images(nn.Hardswish(inplace=True)), IMAGES),
    "group norm": (lambda: images(nn.GroupNorm(2, 8), nn.LeakyReLU(0.1, inplace=True)), IMAGES),
    "instance norm": (lambda: images(nn.InstanceNorm2d(8), nn.Mish()), IMAGES),
    "up and down": (lambda: images(nn.Upsample(scale_factor=2), nn.ConvTranspose2d(8, 4, 2, 2)), IMAGES),
    "in place": (InPlace, numbers(4, 4)),
    "lstm": (lambda: Recurrent(nn.LSTM), numbers(4, 7, 4)),
    "gru": (lambda: Recurrent(nn.GRU), numbers(4, 7, 4)),
    "bag": (Bag, IDS),
    "positions": (Positions, IDS),
    "tokens": (tokens, numbers(16, 5, 8)),
    "normed tokens": (normed_tokens, numbers(5, 6, 8)),
    "batch x tokens": (TokensBySize, numbers(5, 7, 8)),
    "attention": (lambda: nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), numbers(3, 7, 16)),
    "every other row": (EveryOtherRow, numbers(4, 1, 16, 16)),
    "float64 between": (Wide, numbers(4, 9)),
    "no batch, image": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU()), numbers(3, 6, 6)),
    "no batch, norm": (normed_image, numbers(3, 6, 6)),
    "no batch, vector": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), numbers(3)),
}


def exported(model: nn.Module, path, example: Any, **options: Any) -> nn.Module:
    swamp.export(model, path / "x.safetensors", example, **options)
    return swamp.load(path / "x.safetensors", batch=(1, 4))


def outputs_of(network: nn.Module, example: Any) -> Any:
    args, kwargs = call_arguments(example)
    with torch.no_grad():
        return network(*args, **kwargs)


def resized(value: Any, size: int) -> Any:
    """The example with `size` rows."""
    return value[:1].repeat(size, *[1] * (value.dim() - 1)) + 0 if isinstance(value, Tensor) else value


@pytest.mark.fast_cases(3)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_loaded_network_equals_the_original_at_several_batch_sizes(name, tmp_path):
    make, example = NETWORKS[name]
    model = built(lambda: _initialised(make(), example), 0.6)
    network = exported(model, tmp_path, example)
    assert difference(outputs_of(network, example), outputs_of(model, example)) < 1e-4
    if not name.startswith("no batch"):
        for size in (1, 2, 9):
            given = resized(example, size)
            assert difference(outputs_of(network, given), outputs_of(model, given)) < 1e-4


def _initialised(model: nn.Module, example: Any) -> nn.Module:
    with torch.no_grad():
        model.eval()(example)
    return model


class Named(nn.Module):
    """Keyword arguments, constants and an optional mask."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 8)

    def forward(self, ids, mask=None, *, scale: float = 1.0, extras=None):
        x = self.a(ids) * scale
        if extras is not None:
            x = x + extras["more"][0]
        return {"a": x if mask is None else x * mask, "none": None, "two": [x.sum(1), 3]}


@dataclasses.dataclass
class Result:
    logits: Tensor
    hidden: tuple[Tensor, ...] | None = None


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class DynamicCache:
    """Stands for the caches of language models, which are no tensors."""


class Returning(nn.Module):
    def __init__(self, what: str) -> None:
        super().__init__()
        self.a, self.what = nn.Linear(4, 2), what

    def forward(self, x):
        y = self.a(x)
        found = {
            "dataclass": Result(y, (y, x)),
            "named tuple": Pair(y, x),
            "ordered": OrderedDict(b=y, a=x),
            "cache": {"logits": y, "cache": DynamicCache()},
            "object": object(),
        }
        return found[self.what]


def test_arguments_and_outputs_are_nested_as_in_the_original(tmp_path):
    model = built(Named, 0.5)
    x, mask = numbers(3, 4), numbers(3, 8, seed=2)
    example = {"ids": x, "mask": mask, "scale": 2.0, "extras": {"more": (numbers(3, 8, seed=3),)}}
    network = exported(model, tmp_path, example)
    assert difference(outputs_of(network, example), outputs_of(model, example)) < 1e-5
    found = network(x, mask, extras=example["extras"])  # a constant keeps the value of the example
    assert list(found) == ["a", "none", "two"]
    assert found["none"] is None
    assert found["two"][1] == 3
    with pytest.raises(SwampError, match=r"'scale' was 2\.0 when the network was exported"):
        network(x, mask, scale=3.0, extras=example["extras"])
    with pytest.raises(SwampError, match="argument 'mask' is missing"):
        network(x, extras=example["extras"])
    with pytest.raises(SwampError, match="unknown argument 'masks'"):
        network(x, masks=mask, extras=example["extras"])
    with pytest.raises(SwampError, match="needs the entries more"):
        network(x, mask, extras={"other": x})
    with pytest.raises(SwampError, match=r"'mask' has shape \(2, 8\).*takes \(3, 8\)"):
        network(x, mask[:2], extras=example["extras"])


class LabelledPair(Pair):
    """A class derived from a named tuple, as PackedSequence is."""


class Images(list[Tensor]):
    """A list with a method."""

    def joined(self):
        return torch.cat(tuple(self), 1)


class Shifts(tuple[Tensor, ...]):
    """A tuple with a property."""

    __slots__ = ()

    @property
    def last(self):
        return self[-1]


@dataclasses.dataclass
class Batch:
    x: Tensor
    pair: Pair
    mask: Tensor | None = None
    scale: float = 2.0


class Reading(nn.Module):
    """The output depends on each tensor in the containers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(8, 4)

    def forward(self, batch, *more, shifts=None, **named):
        x = self.a(batch.x) * batch.scale + batch.pair.first + (0 if batch.mask is None else batch.mask)
        x = x + 3 * batch.pair.second + (0 if shifts is None else 5 * shifts.last + shifts[0])
        for images in more:
            x = x + self.b(images.joined())
        return x + sum(factor * part["deep"][0] for factor, part in enumerate(named.values(), 7))


def containers(rows: int, seed: int) -> dict[str, Any]:
    """Arguments of `Reading` in every kind of container."""
    x = [numbers(rows, 4, seed=10 * seed + number) for number in range(6)]
    pair = LabelledPair(x[1], x[2]) if seed else Pair(x[1], x[2])
    named = {"outputs": Outputs(deep=(x[4],), no=None), "ordered": OrderedDict(deep=[x[5]])}
    return {"batch": Batch(x[0], pair, x[3]), "shifts": Shifts((x[3], x[2])), **named}


@pytest.mark.parametrize("kind", [Pair, LabelledPair])
def test_every_tensor_of_the_example_becomes_an_input_in_every_kind_of_container(kind, tmp_path):
    model = built(Reading, 0.5)
    example = containers(3, 1 if kind is LabelledPair else 0)
    network = exported(model, tmp_path, example)
    assert [one.name for one in network.program.inputs] == [
        *("batch.x", "batch.pair.first", "batch.pair.second", "batch.mask", "shifts.0", "shifts.1"),
        *("outputs.deep.0", "ordered.deep.0"),
    ]
    for given in (example, containers(3, 2), containers(4, 3)):
        assert difference(outputs_of(network, given), outputs_of(model, given)) < 1e-5
    optional = dataclasses.replace(example["batch"], mask=None)
    alone = exported(model, tmp_path, (optional, Images([numbers(3, 4), numbers(3, 4, seed=1)])))
    given = (optional, Images([numbers(3, 4, seed=7), numbers(3, 4, seed=8)]))
    assert difference(outputs_of(alone, given), outputs_of(model, given)) < 1e-5
    with pytest.raises(SwampError, match=r"argument 'batch.mask' was None when the network was exported"):
        alone(example["batch"], *given[1:])
    with pytest.raises(SwampError, match=r"argument 'outputs' needs the entries deep, no; 'more' is unknown"):
        network(**{**example, "outputs": {**example["outputs"], "more": numbers(3, 4)}})


@dataclasses.dataclass
class Derived:
    """A tensor that the constructor does not take."""

    x: Tensor
    mask: Tensor | None = dataclasses.field(default=None, init=False)


@dataclasses.dataclass
class Scaled:
    """Its constructor changes what it is given."""

    x: Tensor

    def __post_init__(self):
        self.x = self.x / 255


class Padded(list[Tensor]):
    """A list with another constructor than lists have."""

    def __init__(self, first, count) -> None:
        super().__init__([first] * count)


class Entry(nn.Module):
    def forward(self, x, *x0):
        return x


class Starred(nn.Module):
    def forward(self, x0, *x):
        return x0 + x[0]


@pytest.mark.parametrize("kind", ["derived", "scaled", "padded", "same place", "same name"])
def test_an_example_whose_tensors_cannot_all_be_replaced_is_refused(kind):
    x = numbers(3, 4)
    derived = Derived(x)
    derived.mask = x
    cases: dict[str, tuple[nn.Module, Any, str]] = {
        "derived": (Entry(), (derived,), r"'x.mask' of the example changes if it is made again with other tensors"),
        "scaled": (Entry(), (Scaled(x),), r"'x.x' of the example changes if it is made again with other tensors"),
        "padded": (Entry(), (Padded(x, 2),), "the example cannot be made again with other tensors .*'count'"),
        "same place": (Entry(), ({"a": {"b": x}, "a.b": x + 1},), "the example cannot be made again"),
        "same name": (Starred(), (x, x + 1), "the example cannot be made again"),
    }
    model, example, message = cases[kind]
    with pytest.raises(SwampError, match=message):
        trace(model, example)


class WithDefaults(nn.Module):
    """An argument whose default is no constant of a program stands before another."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x, kind=(1, 2), scale=None, shift=1.0):
        return self.a(x) * (kind[1] if scale is None else scale) + shift


def test_arguments_after_a_default_that_is_no_constant_are_inputs_or_constants(tmp_path):
    model = built(WithDefaults, 0.5)
    network = exported(model, tmp_path, {"x": numbers(3, 4), "scale": numbers(3, 4, seed=1)})
    given = {"x": numbers(5, 4, seed=2), "scale": numbers(5, 4, seed=3)}
    assert difference(outputs_of(network, given), outputs_of(model, given)) < 1e-5
    assert difference(network(**given, shift=1.0), outputs_of(model, given)) < 1e-5
    with pytest.raises(SwampError, match="argument 'kind' was 'default of type tuple' when the network was exported"):
        network(given["x"], given["scale"])


@pytest.mark.parametrize("what", ["dataclass", "named tuple", "ordered"])
def test_classes_of_outputs_become_named_outputs(what, tmp_path):
    model = built(lambda: Returning(what), 0.5)
    x = numbers(3, 4)
    network = exported(model, tmp_path, x)
    found, expected = network(x), outputs_of(model, x)
    assert difference(dict(found), expected if what == "ordered" else vars_of(expected)) < 1e-5
    name = {"dataclass": "logits", "named tuple": "first", "ordered": "b"}[what]
    assert getattr(found, name) is found[name]
    with pytest.raises(AttributeError, match="no output 'nothing'; it has"):
        _ = found.nothing


def vars_of(value: Any) -> dict[str, Any]:
    return value._asdict() if isinstance(value, tuple) else vars(value)


def test_caches_are_left_out_by_name_and_other_objects_are_refused(tmp_path):
    x = numbers(3, 4)
    done = swamp.export(built(lambda: Returning("cache"), 0.5), tmp_path / "x.safetensors", x)
    assert done.left_out == ("output.cache",)
    assert "left out: output.cache" in repr(done)
    assert list(swamp.load(tmp_path / "x.safetensors")(x)) == ["logits"]
    with pytest.raises(SwampError, match="returns a object at 'output'"):
        swamp.export(built(lambda: Returning("object"), 0.5), tmp_path / "y.safetensors", x)
    assert not (tmp_path / "y.safetensors").exists()


class Biases(nn.Module):
    """Biases that are inputs, computed, or one number for all outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c, self.norm = nn.Linear(4, 8), nn.Conv1d(1, 2, 3), nn.BatchNorm1d(8)
        self.one = nn.Parameter(torch.ones(1))

    def forward(self, x, bias):
        first, second = self.a.bias.chunk(2)
        y = self.norm(functional.linear(x, self.a.weight, bias)) + functional.linear(x, self.a.weight, self.one).relu()
        y = functional.linear(y.relu(), self.a.weight.T, first) - second
        return functional.conv1d(y[:, None], self.c.weight, y.sum()[None].expand(2))


def test_a_bias_that_is_no_vector_of_the_network_stays_outside_the_kernels():
    model, given = built(Biases, 0.5), (numbers(3, 4), numbers(8, seed=2))
    program = fold_batchnorm(trace(model, given))
    for block in (1, 16):
        found = KernelExecutor(program, KernelConfig(block))(given)
        assert difference(found, outputs_of(model, given)) < 1e-5


class WholeMean(nn.Module):
    """Means without dimensions, of an image and of a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 2, 3), nn.Linear(2, 2)

    def forward(self, x):
        y = self.a(x)
        return y.mean() + self.b(y.mean((2, 3))) + y.flatten(2).mean(dim=[])


def test_means_without_dimensions_are_exported(tmp_path):
    model, x = built(WholeMean, 0.5), numbers(3, 1, 6, 6)
    assert difference(outputs_of(exported(model, tmp_path, x), x), outputs_of(model, x)) < 1e-5


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 4)

    def forward(self, x, edges):
        return self.a(torch.zeros_like(x).index_add(0, edges[1], x[edges[0]]))


@pytest.mark.slow
def test_other_sizes_than_the_batch_vary_if_they_are_named(tmp_path):
    model = built(Graph, 0.5)
    edges = torch.randint(0, 10, (2, 30), generator=torch.Generator().manual_seed(0))
    network = exported(model, tmp_path, (numbers(10, 8), edges), dynamic={"x": {0: "nodes"}, "edges": {1: "edges"}})
    for nodes, count in ((10, 30), (12, 7), (40, 100)):
        given = (numbers(nodes, 8), edges[:, :1].repeat(1, count))
        assert difference(outputs_of(network, given), outputs_of(model, given)) < 1e-4
    with pytest.raises(SwampError, match=r"dimension 1 of 'x' cannot vary: the code of the network fixes it to 8"):
        trace(model, (numbers(10, 8), edges), dynamic={"x": {1: "features"}})


class Tied(nn.Module):
    """Two names for a parameter, a buffer that is not stored, and a parameter with the name of an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.tensor(2.0), persistent=False)
        self.add, self.x = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.second(self.first(x) * self.scale + self.add) + self.x


def test_the_state_dict_is_that_of_the_original(tmp_path):
    model = built(Tied, 0.5)
    network = exported(model, tmp_path, numbers(3, 4))
    assert difference(network(numbers(3, 4)), outputs_of(model, numbers(3, 4))) < 1e-5
    stored = state_dict(tmp_path / "x.safetensors")
    assert stored["first.weight"] is stored["second.weight"]
    fresh = Tied()
    fresh.load_state_dict(stored)
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), model.state_dict().values(), strict=True))


class Unsteady(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.kind = nn.Linear(4, 4), kind

    def forward(self, x):
        y = self.a(x)
        return functional.dropout(y, 0.5) if self.kind == "dropout" else y + torch.randn_like(y)


class Imaginary(nn.Module):
    """Conjugates and negatives, which torch keeps as views with a flag."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        z = torch.fft.fft(x).conj()
        return self.b(self.a(z.imag).relu()), torch.view_as_real(z.resolve_conj())


def test_conjugates_and_negatives_are_those_of_the_network(tmp_path):
    model, x = built(Imaginary, 0.5), numbers(4, 8)
    network = exported(model, tmp_path, x)
    assert difference(network(x), outputs_of(model, x)) < 1e-4


def test_kernels_read_a_lazily_negated_input_with_its_sign():
    model, flagged = built(lambda: nn.Linear(8, 3), 0.5), torch._neg_view(numbers(4, 8))
    program = fold_batchnorm(trace(model, numbers(4, 8)))
    for block in (1, 16):
        found = KernelExecutor(program, KernelConfig(block))([flagged])
        assert difference(found, outputs_of(model, flagged)) < 1e-4


class Quantised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.act = nn.Linear(4, 4), nn.RReLU()

    def forward(self, x):
        weight = torch.fake_quantize_per_tensor_affine(self.a.weight, 0.05, 0, -128, 127)
        return self.act(functional.linear(x, weight, self.a.bias))


def test_simulated_quantisation_and_rrelu_without_training_are_exported(tmp_path):
    model, x = built(Quantised, 0.5), numbers(3, 4)
    assert difference(exported(model, tmp_path, x)(x), outputs_of(model, x)) < 1e-4


class Deciding(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


@pytest.mark.slow
def test_what_cannot_be_exported_is_refused_with_its_reason_and_nothing_is_written(tmp_path):
    path, x = tmp_path / "x.safetensors", numbers(3, 4)
    with pytest.raises(SwampError, match=r"draws random numbers \(native_dropout\.default\)"):
        swamp.export(built(lambda: Unsteady("dropout"), 0.5), path, x)
    with pytest.raises(SwampError, match=r"draws random numbers \(randn_like\.default\)"):
        swamp.export(built(lambda: Unsteady("randn"), 0.5), path, x)
    with pytest.raises(SwampError, match=r"torch\.export cannot follow Deciding"):
        swamp.export(Deciding(), path, x)
    with pytest.raises(SwampError, match="cannot be called with the example: too many positional arguments"):
        swamp.export(built(lambda: nn.Linear(4, 2), 0.5), path, (x, x))
    with pytest.raises(SwampError, match="the example has a set at 'input'"):
        swamp.export(built(lambda: nn.Linear(4, 2), 0.5), path, {1, 2})
    with pytest.raises(SwampError, match=r"takes a torch module, or what swamp\.prune returned, got str"):
        swamp.export("model", path, x)
    assert not path.exists()
    with pytest.warns(UserWarning, match="Linear has no pruned weights, and no mask was given"):
        swamp.export(nn.Linear(4, 2), path, x)


class Squeezing(nn.Module):
    """Treats a single example in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        y = self.a(x)
        return y - y.mean(0) if x.shape[0] > 1 else y


def test_a_batch_size_that_the_program_does_not_cover_is_refused_at_the_call(tmp_path):
    model = built(Squeezing, 0.5)
    network = exported(model, tmp_path, numbers(3, 4))
    assert difference(network(numbers(5, 4)), outputs_of(model, numbers(5, 4))) < 1e-4
    with pytest.raises(SwampError, match="takes a size 'batch' of 2 or more, got 1"):
        network(numbers(1, 4))


class Nearest(nn.Module):
    """torch.cdist has another formula from 26 rows on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.centres = nn.Linear(4, 3), nn.Parameter(torch.ones(2, 3))

    def forward(self, x):
        return torch.cdist(self.a(x), self.centres)


@pytest.mark.parametrize(("rows", "limits"), [(4, "1 to 25"), (32, "26 or more")])
def test_limits_of_the_batch_size_are_told_at_the_export(rows, limits, tmp_path):
    model = built(Nearest, 0.5)
    with pytest.warns(UserWarning, match=f"takes batches of {limits} examples only"):
        network = exported(model, tmp_path, numbers(rows, 4))
    assert difference(network(numbers(rows, 4)), model(numbers(rows, 4)).detach()) < 1e-4


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (nn.Linear(4, 2), torch.ones(2, 5), "Linear cannot be called with the example .mat1 and mat2 shapes"),
        (nn.Linear(4, 2), torch.ones(2, 4, dtype=torch.long), "the network cannot be called with the example"),
        (nn.Linear(4, 2).double(), torch.ones(2, 4), "the network cannot be called with the example"),
        (nn.Linear(4, 2), torch.ones(0, 4), "the example has a batch of 0"),
        (nn.Linear(4, 2), None, "the example has no tensor"),
    ],
)
def test_an_example_that_the_network_does_not_take_is_refused(model, example, message, tmp_path):
    with pytest.raises(SwampError, match=message):
        swamp.export(model, tmp_path / "x.safetensors", example)
    assert not list(tmp_path.iterdir())


def test_modules_without_a_signature_and_masks_of_other_types_are_refused(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        scripted = torch.jit.script(nn.Linear(4, 2))
        with pytest.raises(SwampError, match="give the module that was scripted or traced"):
            swamp.export(scripted, tmp_path / "x.safetensors", numbers(2, 4))
    with pytest.raises(SwampError, match=r"mask must be a swamp\.Mask, got dict"):
        swamp.export(nn.Linear(4, 2), tmp_path / "x.safetensors", numbers(2, 4), {"weight": torch.ones(2, 4)})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_transformer_encoder_with_padding_is_exported_without_nested_tensors(tmp_path):
    hidden = torch.tensor([[False] * 6, [False] * 2 + [True] * 4])
    given = {"src": numbers(2, 6, 16), "src_key_padding_mask": hidden}

    model = built(lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 1), 0.5)
    with pytest.raises(SwampError, match="needs enable_nested_tensor=False"):
        swamp.export(model, tmp_path / "x.safetensors", given)
    model.enable_nested_tensor = model.use_nested_tensor = False
    assert difference(exported(model, tmp_path, given)(**given), outputs_of(model, given)) < 1e-4


class Bags(nn.Module):
    """Takes the first index of each bag: they must be in order, and the first is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(20, 8), nn.Linear(8, 2)

    def forward(self, ids, starts):
        return self.head(self.bag(ids, starts))


def test_a_network_that_takes_no_random_inputs_is_timed_with_those_of_the_first_call(tmp_path):
    model, given = built(Bags, 0.5), (IDS.flatten(), torch.tensor([0, 3, 3, 8]))
    network = exported(model, tmp_path, given)
    assert network.tuned == {}
    with pytest.raises(SwampError, match=r"cannot be executed with these inputs, 24 examples .offsets"):
        network(given[0], given[1] + 1)
    assert difference(network(*given), outputs_of(model, given)) < 1e-5
    assert list(network.tuned) == [24]
    with pytest.raises(SwampError, match="cannot be measured with 4 random inputs"):
        benchmark(network.program, [4], ["torch"], seconds=0.01)


class Lengths(nn.Module):
    """Treats one token, and five examples or more, in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x):
        y = self.a(x)
        y = y - y.mean(1, keepdim=True) if x.shape[1] > 1 else y
        return y if x.shape[0] < 5 else 2 * y


def test_a_size_other_than_the_batch_that_the_program_does_not_cover_is_refused_at_the_call(tmp_path):
    model = built(Lengths, 0.5)
    with pytest.warns(UserWarning, match="takes batches of 1 to 4 examples only"):
        network = exported(model, tmp_path, numbers(3, 6, 4), dynamic={"x": {0: "batch", 1: "tokens"}})
    for size in ((1, 2, 4), (4, 9, 4)):
        assert difference(network(numbers(*size)), outputs_of(model, numbers(*size))) < 1e-4
    with pytest.raises(SwampError, match="takes a size 'tokens' of 2 or more, got 1"):
        network(numbers(3, 1, 4))
    with pytest.raises(SwampError, match="takes a size 'batch' of 1 or more, at most 4, got 5"):
        network(numbers(5, 6, 4))


@pytest.mark.parametrize(
    ("dynamic", "message"),
    [
        ({"x": [0]}, r"dynamic must be as in .*, got {'x': \[0\]}"),
        ({"y": {0: "n"}}, "dynamic names the input 'y'; the inputs are x"),
        ({"x": {-1: "n"}}, "dynamic names dimension -1 of 'x', which has 3 dimensions"),
        ({"x": {3: "n"}}, "dynamic names dimension 3 of 'x', which has 3 dimensions"),
        ({"x": {0: "n-1"}}, "dynamic names a size 'n-1'"),
        ({"x": {0: torch.export.Dim("n")}}, "dynamic names a size Dim"),
        ({"x": {0: "n", 1: "n"}}, "gives the name 'n' to sizes that differ in the example, 2 and 3"),
        ({"x": {2: "n"}}, "dimension 2 of 'x' is 1 in the example, which torch.export takes as fixed"),
    ],
)
def test_names_of_sizes_that_mean_nothing_are_refused(dynamic, message):
    with pytest.raises(SwampError, match=message):
        FlatModel(Lengths(), torch.ones(2, 3, 1)).dynamic_shapes(dynamic)


@pytest.mark.slow
def test_an_example_of_one_gives_a_network_for_any_batch(tmp_path):
    model = built(lambda: nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), 0.5)
    loaded = exported(model, tmp_path, numbers(1, 4))
    for size in (1, 5):
        assert difference(loaded(numbers(size, 4)), outputs_of(model, numbers(size, 4))) < 1e-5
    image = built(lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), 0.5)
    assert trace(image, numbers(1, 5, 5)).inputs[0].shape == (1, 5, 5)  # one channel, and no batch


def test_networks_in_half_precision_are_exported_as_they_are(tmp_path):
    model = pruned_(nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()), 0.5).to(torch.bfloat16)
    given = numbers(2, 1, 6, 6).to(torch.bfloat16)
    assert difference(exported(model, tmp_path, given)(given), outputs_of(model, given)) < 1e-4


def test_a_plain_state_dict_is_refused_with_what_it_is_for(tmp_path):
    from safetensors.torch import save_file

    save_file(nn.Linear(3, 2).state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(SwampError, match=r"a plain state dict.*load_state_dict.*swamp\.export\(model, path, example\)"):
        swamp.load(tmp_path / "weights.safetensors")


def test_a_run_directory_is_loaded_if_its_network_was_exported(tmp_path):
    with pytest.raises(SwampError, match="is a directory without an exported network, and no run of swamp"):
        swamp.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SwampError, match=r"has no exported network\. Write one with: swamp export"):
        swamp.load(tmp_path)
    model = built(lambda: nn.Linear(4, 2), 0.5)
    swamp.export(model, tmp_path / "export.safetensors", numbers(2, 4))
    assert difference(swamp.load(tmp_path)(numbers(2, 4)), outputs_of(model, numbers(2, 4))) < 1e-5


def test_a_region_that_differs_from_torch_is_named_and_runs_in_torch(monkeypatch, tmp_path):
    model = built(lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), 0.5)
    program = remove_dead_units(fold_batchnorm(trace(model, numbers(4, 6))))
    executor = KernelExecutor(program, KernelConfig(4))
    assert differing_nodes(executor, program.example_inputs(4)) == set()
    bias = next(a for r in executor.regions for a in r.lowered.pinned if a.dtype.kind == "f" and len(a))
    bias += 1
    with pytest.warns(UserWarning, match=r"differ from torch in 'linear_1'.*0: linear, 1: relu, 2: linear"):
        assert differing_nodes(executor, program.example_inputs(4)) == {"linear", "relu", "linear_1"}
    monkeypatch.setattr(network, "differing_nodes", lambda executor, inputs: {"linear"} & names(executor))
    loaded = network.SparseNetwork(program, batch=4)
    assert loaded.in_kernels.in_torch == {"linear"} or loaded.tuned[4].method == "dense"
    excluded = dataclasses.replace(program, in_torch=frozenset({"linear", "relu", "linear_1"}))
    assert not any(hasattr(part, "nodes") for part in partition(excluded))


def names(executor: KernelExecutor) -> set[str]:
    return {node.name for region in executor.regions for node in region.region.nodes}


class Amplifying(nn.Module):
    """The sine of a number so large that its rounding decides."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(64, 64)

    def forward(self, x):
        return (1e7 * self.a(x)).sin()


def test_a_network_that_amplifies_rounding_runs_in_torch(tmp_path):
    model = built(Amplifying, 0.5)
    with pytest.warns(UserWarning, match="because the network amplifies rounding; torch executes it"):
        swamp.export(model, tmp_path / "x.safetensors", numbers(4, 64))
    loaded = swamp.load(tmp_path / "x.safetensors", batch=4)
    assert difference(loaded(numbers(4, 64)), outputs_of(model, numbers(4, 64))) < 1e-4


def test_differences_are_relative_and_see_nan_infinity_shapes_and_types():
    one = torch.tensor([1e-6, 2e-6])
    assert difference(one * 1.001, one) == pytest.approx(1e-3, rel=1e-2)
    assert difference(one, one.double()) == difference(one, one[:1]) == difference((one,), (one, one)) == float("inf")
    special = torch.tensor([float("nan"), float("inf"), 1.0])
    assert difference(special, special.clone()) == 0
    assert difference(special, torch.tensor([float("nan"), -float("inf"), 1.0])) == float("inf")
    assert difference(special, torch.tensor([0.0, float("inf"), 1.0])) == float("inf")
    assert checks.RELATIVE_TOLERANCE == 1e-4


def test_sizes_are_known_from_probes_and_never_stored():
    program = trace(built(TokensBySize, 0.5), numbers(5, 7, 8))
    assert program.inputs[0].shape == ("batch", 7, 8)
    layers = [node for node in program.nodes if node.op == "linear"]
    assert [program.shape_of(node.name) for node in layers] == [(None, 6), (None, 7, 3)]
    assert program.values[layers[0].name].shapes == ((14, 6), (21, 6), (35, 6))


class Scattering(nn.Module):
    """A shape that depends on numbers, and then one that does not."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x, index):
        messages = self.a(x[index >= 0])
        return torch.zeros_like(x).scatter_add(0, index[:, None].expand(-1, 4), x) + messages.sum()


@pytest.mark.slow
def test_shapes_are_known_again_after_one_that_depends_on_numbers_and_kept_by_rewrites():
    program = trace(built(Scattering, 0.5), (numbers(5, 4), torch.tensor([0, 1, 1, 2, 4])))
    (scatter,) = [node for node in program.nodes if node.op == "scatter_add"]
    (layer,) = [node for node in program.nodes if node.op == "linear"]
    assert program.shape_of(scatter.name) == (None, 4)
    assert layer.name not in program.values
    recurrent = trace(built(lambda: Recurrent(nn.LSTM), 0.5), numbers(4, 7, 4))
    rewritten = remove_dead_units(fold_batchnorm(recurrent))
    assert {name: rewritten.shape_of(name) for name in rewritten.node_by_name} == {
        name: recurrent.shape_of(name) for name in rewritten.node_by_name
    }
    whole = next(node.name for node in recurrent.nodes if node.target == "operator.getitem")
    assert recurrent.shape_of(whole) == (None, 7, 16)


@pytest.mark.slow
def test_a_value_of_gigabytes_is_refused_before_it_is_computed():
    class Huge(nn.Module):
        def forward(self, x):
            return x.new_zeros(2**15, 2**15).sum() + x

    program = trace(Huge(), numbers(2, 3))
    with pytest.raises(ValueError, match="would take 4,294,967,296 bytes"):
        _ = program.values


def test_a_program_uses_each_name_once_and_computes_before_it_reads():
    program = trace(built(lambda: nn.Sequential(nn.Linear(3, 2), nn.ReLU()), 0), numbers(2, 3))
    linear, relu = program.nodes
    for nodes, message in (
        ((linear, dataclasses.replace(relu, name="linear")), "two values have the name 'linear'"),
        ((dataclasses.replace(linear, name="0.weight"), relu), r"two values have the name '0\.weight'"),
        ((relu, linear), "'relu' reads .'linear'. before it is computed"),
        ((linear,), "the output is never computed"),
    ):
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(program, nodes=nodes)
