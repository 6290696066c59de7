"""The public calls on models and tasks that are Python objects: prune, cycles, retrain, transfer, load_run."""

from swamp.api.pruning import cycles, load_run, prune, retrain
from swamp.api.transferring import transfer

__all__ = ["cycles", "load_run", "prune", "retrain", "transfer"]
