"""`python -m swamp`: the command line where no `swamp` command is on the path."""

from swamp.cli import main

main()
