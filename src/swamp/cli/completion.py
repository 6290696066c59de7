"""swamp completion."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any, Literal, Union, cast

import tyro

from swamp.cli.session import parse


@dataclass(frozen=True)
class CompletionArgs:
    """Print a script that completes commands and options in a shell. The script calls python3.

    swamp completion bash > ~/.local/share/bash-completion/completions/swamp
    swamp completion zsh > ~/.zfunc/_swamp            with ~/.zfunc in $fpath
    swamp completion fish > ~/.config/fish/completions/swamp.fish
    """

    shell: tyro.conf.Positional[Literal["bash", "zsh", "fish"]]


def completion_command(arguments: Sequence[str]) -> None:
    """swamp completion bash|zsh|fish."""
    shell = parse(CompletionArgs, "swamp completion", arguments).shell
    from swamp.cli.entry import COMMANDS

    kinds: list[Any] = []
    for name, (module, summary) in COMMANDS.items():
        kind = getattr(import_module(f"swamp.cli.{module}"), f"{name.capitalize()}Args")
        kinds.append(Annotated[kind, tyro.conf.subcommand(name, description=summary)])
    tyro.cli(
        cast("Any", Union[tuple(kinds)]),  # noqa: UP007  # built at run time
        prog="swamp",
        args=["--tyro-print-completion", shell],
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes),
    )
