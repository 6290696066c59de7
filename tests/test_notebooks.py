"""The notebooks of the site run from top to bottom; what is committed is small and shows no error."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parent.parent / "docs" / "tutorials").glob("*.ipynb"))
SMALLER = {
    "image_classifier": [("epochs=6", "epochs=1"), ("particles=4", "particles=2")],
    "own_loop": [("epochs=10", "epochs=1")],
    "reading_a_report": [("--examples 1000 --epochs 6", "--examples 400 --epochs 2"), ("--points 7", "--points 3")],
    "text_minilm": [
        ("epochs=2", "epochs=1"),
        ("slice(0, 128)", "slice(0, 32)"),
        ("slice(128, 224)", "slice(32, 48)"),
        ("slice(224, 352)", "slice(48, 64)"),
    ],
}
"""Less work of the same kind: what is executed here is not kept, and `make notebooks` executes what is written."""

COMMANDS_HERE = """
import contextlib, re, shlex
from swamp.cli import main
from swamp.cli.session import Err, Out

Err.is_jupyter = Out.is_jupyter = False

def system(line, shell=get_ipython().system):
    command, arrow, log = re.match("([^>]+)(>*)(.*)", get_ipython().var_expand(line)).groups()
    if not command.startswith("swamp "):
        return shell(line)
    with contextlib.ExitStack() as stack:
        if arrow:
            stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(log.strip(), "a"))))
        main(shlex.split(command)[1:])

get_ipython().system = system
"""
"""Commands of swamp run in the kernel, where torch is imported already, and one that fails stops the notebook."""


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_a_notebook_runs_from_top_to_bottom(path, tmp_path):
    text = path.read_text()
    for written, executed in SMALLER[path.stem]:
        assert text.count(written) == 1
        text = text.replace(written, executed)
    notebook = nbformat.reads(text, as_version=4)
    notebook.cells.insert(0, nbformat.v4.new_code_cell(COMMANDS_HERE))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_the_stored_outputs_are_small_and_without_errors(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert outputs
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    assert path.stat().st_size < 150_000
