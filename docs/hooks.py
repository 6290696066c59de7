"""Pages of the site that are made when it is built: the options of every command, and the notebooks."""

import base64
import inspect
import json
import re
import struct
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path, PurePosixPath
from posixpath import join, normpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from swamp.cli.entry import COMMANDS
from swamp.cli.help import HEADINGS, CommandOption, command_options
from swamp.recipes import configuration

OWN_GROUPS = ("TicketArgs", "TransferArgs", "TuneArgs")
"""Commands that take the options of `swamp run` too. The page lists the options of `swamp run` once."""
_DRAWN = re.compile(
    r'(<h\d [^>]*>(?:(?!</h\d>).)*</h\d>\s*)?<div class="[\w -]*highlight">(?:(?!</div>).)*</div>\s*<p><img [^>]*></p>',
    re.DOTALL,
)
"""A command and its figure, and the heading just above them, if any."""


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the commands in place of their mark."""
    mark = "<!-- commands -->"
    return markdown.replace(mark, "\n".join(commands())) if mark in markdown else markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Keep names of options, "0.9 ±0.1" and "0.8–0.9" on one line; mark for style.css what it cannot find itself.

    These are wide pictures, cells of a table with a sentence, and a command with the figure that it draws.
    """

    def whole(code: re.Match[str]) -> str:
        # Browsers break lines after hyphens.
        found = re.sub(r"(?<![\w-])--[a-z][a-z-]*", r'<span class="option">\g<0></span>', code[0])
        # A long list of choices may break after each.
        return (
            found.replace("|", "|<wbr>").replace("<code>", '<code class="choices">')
            if code[0].count("|") > 3
            else found
        )

    def marked(picture: re.Match[str]) -> str:
        source = sources.get(normpath(join(page.file.dest_uri, "..", picture[1])))
        return picture[0].replace("<img ", '<img class="wide" ', 1) if source and is_wide(source) else picture[0]

    sources = {file.dest_uri: Path(path) for file in files if (path := file.abs_src_path)}
    html = html.replace(" ±", "\N{NO-BREAK SPACE}±").replace("–", "\N{WORD JOINER}–\N{WORD JOINER}")
    html = re.sub(r"(±[\d.]+) (?=[*=]|<code>[*=])", "\\1\N{NO-BREAK SPACE}", html)
    html = re.sub(r"<code>[^<]*</code>", whole, html)
    # Names such as swin_tiny_patch4_window7_224 may break after each underscore.
    html = re.sub(r"<td>\w*_\w*</td>", lambda cell: cell[0].replace("_", "_<wbr>"), html)
    html = re.sub(r"<td>(?=.{40})", '<td class="sentence">', html)
    html = re.sub(_DRAWN, r'<div class="drawn">\g<0></div>', html)
    return re.sub(r'<img [^>]*src="([^"]+)"[^>]*>', marked, html)


def is_wide(picture: Path) -> bool:
    """Whether a PNG or an SVG is more than 1.5 times as wide as high."""
    if picture.suffix == ".png":
        width, height = struct.unpack(">II", picture.read_bytes()[16:24])
    elif picture.suffix == ".svg" and (box := re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', picture.read_text())):
        width, height = float(box[1]), float(box[2])
    else:
        return False
    return width > 1.5 * height


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook."""
    for file in list(files):
        if file.src_uri.endswith(".ipynb"):
            for name, content in notebook(Path(file.abs_src_path)):
                files.append(File.generated(config, str(PurePosixPath(file.src_uri).with_name(name)), content=content))
    return files


def commands() -> Iterator[str]:
    """The reference of all commands, in Markdown."""
    run = {option.name for option in command_options(_arguments("run"))}
    for name in COMMANDS:
        given = _arguments(name)
        yield f"## swamp {name}\n"
        yield from _about(inspect.getdoc(given) or "")
        options = list(command_options(given))
        if name in ("ticket", "transfer", "tune"):
            options = [option for option in options if option.name not in run or option.group in OWN_GROUPS]
        for group in dict.fromkeys(option.group for option in options):
            if name == "run":
                yield f"\n### {HEADINGS[group]}\n"
            yield from _table([option for option in options if option.group == group])


def _arguments(command: str) -> Any:
    kind = getattr(import_module(f"swamp.cli.{COMMANDS[command][0]}"), f"{command.capitalize()}Args")
    return kind(configuration("", "", "")) if command in ("run", "ticket", "transfer", "tune") else kind


def _about(text: str) -> Iterator[str]:
    """The docstring, with its examples as code."""
    for paragraph in text.split("\n\n"):
        lines = [line.strip() for line in paragraph.splitlines()]
        if lines[0].startswith("swamp "):
            yield "```console\n" + "\n".join(f"$ {line}" for line in lines) + "\n```\n"
        else:
            yield " ".join(lines) + "\n"


def _table(options: Sequence[CommandOption]) -> Iterator[str]:
    yield "| option | default | meaning |\n|---|---|---|"
    for option in options:
        default = option.default if option.default in ("", "on") else f"`{option.default}`"
        text = option.text.replace("|", "\\|").replace("*", "\\*").replace("<", "&lt;")
        usage = option.usage.replace(", ", "`, `")
        yield f"| `{usage}` | {default} | {text} |"
    yield ""


def notebook(path: Path) -> Iterator[tuple[str, str | bytes]]:
    """File name -> content: the page of a notebook, and the pictures among its outputs."""
    lines: list[str] = []
    for number, cell in enumerate(json.loads(path.read_text())["cells"]):
        source = "".join(cell["source"])
        lines.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        printed = ""
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if "image/png" in data:
                picture = f"{path.stem}-{number}.png"
                yield picture, base64.b64decode(data["image/png"])
                lines.append(f"![Output of the cell above]({picture})")
            else:
                printed += "".join(output.get("text", data.get("text/plain", ())))
        if printed.strip():
            lines.append(f"```text\n{printed.strip()}\n```")
    lines.append(f"[Download this page as a notebook]({path.name})")
    yield f"{path.stem}.md", "\n\n".join(lines)
