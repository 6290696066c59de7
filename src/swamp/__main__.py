"""`python -m swamp`, and so `torchrun -m swamp`."""

from swamp.cli import main

if __name__ == "__main__":
    main()
