"""Exported files made to do harm: refused before memory is taken, or stopped before kernels read other memory."""

import json
import resource

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from swamp.errors import SwampError
from swamp.files import digest
from swamp.runtime.archive import _FORMAT, _compressed, _decompressed, read, save
from swamp.runtime.kernels import KernelConfig, KernelExecutor
from swamp.runtime.program import Node, Program, Ref
from swamp.runtime.regions import partition
from swamp.runtime.tracing import trace


@pytest.fixture(scope="module")
def program() -> Program:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    nn.init.sparse_(model[0].weight, 0.5)
    return trace(model.eval(), torch.randn(3, 6))


def _forged(program: Program, path, change) -> None:
    """Write the program with a changed description and a valid checksum."""
    save(program, path)
    stored = load_file(path)
    description = json.loads(_decompressed(stored["program"], 2**28))
    change(description)
    stored["program"] = _compressed(json.dumps(description).encode())
    metadata = {"format": _FORMAT, "digest": digest(stored)}
    save_file(stored, path, metadata)


def _steps(description):
    return description["program"]["steps"]


def _named_alike(description):
    _steps(description)[1]["name"] = _steps(description)[0]["name"]


def _cycle(description):
    _steps(description)[0]["args"] = {"tuple": [{"ref": _steps(description)[1]["name"]}, *_args(description)[1:]]}


def _args(description):
    return _steps(description)[0]["args"]["tuple"]


def _shadows(name):
    return lambda description: _steps(description)[0].update(name=name)


def _calls(target, *args):
    return lambda description: _steps(description)[1].update(target=target, args={"tuple": list(args)})


def _claims(shape):
    def change(description):
        group = description["rest"] or description["sparse"]
        name = next(iter(group))
        group[name][0] = shape

    return change


def _nested(description):
    _steps(description)[0]["args"] = {"tuple": [{"tuple": []}]}
    inner = _steps(description)[0]["args"]
    for _ in range(300):
        inner["tuple"] = [{"tuple": inner["tuple"]}]


ATTACKS = {
    "two steps of one name": _named_alike,
    "a cycle": _cycle,
    "a step named like a tensor": _shadows("0.weight"),
    "a step named like an input": lambda one: _shadows(one["program"]["inputs"][0]["name"])(one),
    "reads a file": _calls("from_file.default", "/etc/passwd"),
    "changes its input": _calls("relu_.default", {"ref": "linear"}),
    "python": _calls("operator.attrgetter", "x"),
    "random": _calls("rand_like.default", {"ref": "linear"}),
    "memory that was not written": _calls("empty.memory_format", [4, 4]),
    "another module of torch": _calls("_C.set_num_threads", 3),
    "a view of other memory": _calls("as_strided.default", {"ref": "linear"}, [10**6], [1], 10**6),
    "two gigabytes of tensors": _claims([2**29]),
    "more than an integer": _claims([2**62, 2**62]),
    "a negative size": _claims([-1, -30]),
    "a size that is no number": _claims([float("nan")]),
    "two gigabytes of values": _calls("zeros.default", [2**29]),
    "deep nesting": _nested,
    "an input of a negative size": lambda one: one["program"]["inputs"][0].update(shape=["batch", -6]),
    "an unknown size": lambda one: one["program"]["inputs"][0].update(shape=["rows", 6]),
    "a huge batch": lambda one: one["program"]["sizes"].update(batch=[2**40, None, 2**40]),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_a_forged_file_is_refused_or_harmless(name, program, tmp_path):
    path = tmp_path / "forged.safetensors"
    _forged(program, path, ATTACKS[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        KernelExecutor(read(path), KernelConfig(4))([torch.randn(7, 6)])
    except (SwampError, RuntimeError, ValueError, IndexError, KeyError):
        pass
    else:
        pytest.fail("it was executed")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 200_000


@pytest.mark.parametrize("name", list(ATTACKS)[:10])
def test_a_forged_file_is_refused_when_it_is_read(name, program, tmp_path):
    path = tmp_path / "forged.safetensors"
    _forged(program, path, ATTACKS[name])
    with pytest.raises(SwampError):
        read(path)


def test_rows_that_follow_only_from_the_probes_are_refused_in_the_call(program):
    """A number of rows that is the batch at every size that is tried at load, and more at another."""
    batch = Ref("rows")
    nodes = [Node("rows", "sym_size.int", (Ref(program.inputs[0].name), 0), {})]
    probes = program.values[program.inputs[0].name].shapes
    for number, shape in enumerate(probes):
        nodes.append(Node(f"apart_{number}", "operator.sub", (batch, shape[0]), {}))
    product = Ref("apart_0")
    for number in range(1, len(probes)):
        nodes.append(Node(f"product_{number}", "operator.mul", (product, Ref(f"apart_{number}")), {}))
        product = Ref(f"product_{number}")
    nodes.append(Node("wrong", "operator.add", (batch, product), {}))
    nodes.append(Node("other", "zeros.default", ([Ref("wrong"), 4],), {}))
    last = program.output.name
    nodes += [*program.nodes, Node("sum", "add.Tensor", (Ref(last), Ref("other")), {})]
    hostile = Program(
        program.inputs, tuple(nodes), Ref("sum"), program.tensors, program.arguments, program.sizes, program.state
    )
    (region,) = [part for part in partition(hostile) if not isinstance(part, Node)]
    assert set(region.inputs) == {program.inputs[0].name, "other"}
    execute = KernelExecutor(hostile, KernelConfig(4))
    execute([torch.randn(probes[0][0], 6)])
    with pytest.raises(SwampError, match="the kernels cannot read"):
        execute([torch.randn(77, 6)])
