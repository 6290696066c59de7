"""A command of swamp, in this process."""

from swamp import cli


def swamp(*arguments: object) -> int:
    """Exit code of the command."""
    try:
        cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)
    return 0
