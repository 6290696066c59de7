"""The public calls on models and tasks that are Python objects: prune, cycles, retrain, load_run."""

from swamp.api.pruning import cycles, load_run, prune, retrain

__all__ = ["cycles", "load_run", "prune", "retrain"]
