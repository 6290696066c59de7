"""The summary of a finished run, as `swamp run` prints it."""

from shlex import quote
from typing import Any

from rich.console import Console
from rich.table import Table

from swamp.api.progress import number


def print_summary(done: dict[str, Any], console: Console) -> None:
    """Print the metrics of a finished run, beside the dense network, and its directory."""
    table = Table(title=f"{done['method']}: {done['run']}", title_justify="left", box=None, pad_edge=False)
    names = list(done["test"])
    for heading in ("", "sparsity %", "of all weights %", *(f"test {name}" for name in names)):
        table.add_column(heading, justify="right")
    for label, part in (("dense", done["dense"]), ("sparse", done)):
        if part is None:
            continue
        density = part["density"]
        values = (number(part["test"][name], name) for name in names)
        table.add_row(label, f"{100 * part['sparsity']:.2f}", f"{100 * density['all']:.2f}", *values)
    console.print()
    console.print(table)
    console.print(
        f"\n{done['seconds']:.0f} s of computation. "
        f"Sparse weights for load_state_dict: {done['run']}/model.safetensors\n"
        f"Compare with other runs: swamp compare {quote(str(done['run']))} OTHER...",
        soft_wrap=True,
    )
