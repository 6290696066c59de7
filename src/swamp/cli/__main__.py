"""`python -m swamp.cli`: the same as `python -m swamp`."""

from swamp.cli import main

main()
