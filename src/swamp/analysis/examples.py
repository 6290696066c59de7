"""The examples that something is measured on."""

from swamp.training import Data
from swamp.training.data import Batch, rows_of


def first_examples(data: Data, examples: int, batch_size: int) -> list[Batch]:
    """The first `examples` in batches, as the model takes them; the last batch is cut to fit."""
    batches: list[Batch] = []
    left = examples
    for inputs, targets in data.in_order(min(batch_size, examples)):
        batches.append((rows_of(inputs, slice(left)), targets[:left]))
        left -= len(batches[-1][1])
        if not left:
            break
    return batches
