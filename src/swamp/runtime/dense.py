"""A program as a module of torch: called as the network was, and executed operator by operator, zeros included."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from swamp.runtime.program import Program, referenced, torch_call


class ExportedNetwork(nn.Module):
    """A program as a module, which is called as the network was that it was traced from.

    Args:
        program: The network.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the network.

        Raises:
            SwampError: The arguments differ from those of the example in number, shape, dtype or constants, or an input
                requires gradients.
        """
        inputs = self.program.bind(args, kwargs)
        return self.execute(inputs, self.program.check_inputs(inputs))

    def execute(self, inputs: Sequence[Tensor], batch: int) -> Any:
        """The output for inputs in the order of the program, with this number of examples."""
        raise NotImplementedError


class DenseNetwork(ExportedNetwork):
    """A program that torch executes operator by operator, zeros included.

    Args:
        program: The network. Its tensors become buffers of the module.
        device: Where operators put the tensors that they make of nothing.
    """

    def __init__(self, program: Program, device: torch.device | None = None) -> None:
        super().__init__(program)
        self._attributes = {name: f"{number}_{name.replace('.', '__')}" for number, name in enumerate(program.tensors)}
        for name, tensor in program.tensors.items():
            self.register_buffer(self._attributes[name], tensor)
        self._calls = [(node, torch_call(node, device)) for node in program.nodes]
        self._last_reads = _last_reads(program)

    def attribute(self, name: str) -> str:
        """Name of the buffer that holds the tensor `name` of the program."""
        return self._attributes[name]

    def execute(self, inputs: Sequence[Tensor], batch: int = 1) -> Any:
        """The output for inputs in the order of the program."""
        values = self.program.start(inputs, {name: getattr(self, own) for name, own in self._attributes.items()})
        for node, call in self._calls:
            call(values)
            for name in self._last_reads.get(node.name, ()):
                del values[name]
        return self.program.result(values)


def _last_reads(program: Program) -> dict[str, list[str]]:
    """Node name -> the values whose last reader is that node."""
    last: dict[str, str] = {}
    for node in program.nodes:
        last.update(dict.fromkeys([node.name, *node.reads], node.name))
    for name in (*referenced(program.output), *program.tensors):
        last.pop(name, None)
    finished: dict[str, list[str]] = {}
    for name, node in last.items():
        finished.setdefault(node, []).append(name)
    return finished
