"""Sparse transformers models in a folder as Hugging Face lays it out, with the mask and a model card beside."""

import json
import secrets
import shutil
from pathlib import Path
from typing import Any, cast

from swamp.algorithms import SparseModel
from swamp.errors import SwampError
from swamp.files import write_atomic
from swamp.masks import Mask

try:
    import transformers
    from transformers import PreTrainedModel
except ImportError as error:
    raise ImportError(f"this adapter needs transformers ({error}): pip install 'swamp[huggingface]'") from error

_CARD = """---
library_name: transformers
tags: [swamp, pruned, sparse]
---
# A sparse {kind}

{kept:,} of {prunable:,} prunable weights live; the others are exactly zero.

| | |
|---|---|
{rows}

Zeros do not make dense kernels faster: this model is small when compressed, and an input for sparse kernels.

```python
import transformers

model = transformers.{kind}.from_pretrained("{folder}")  # an ordinary model with zeros in it
```

To train on without losing the zeros (`pip install 'swamp[huggingface]'`):

```python
from swamp.integrations.huggingface import HoldMask
from swamp.integrations.pretrained import from_pretrained

sparse = from_pretrained("{folder}")  # checks the zeros
trainer = transformers.Trainer(sparse.model, ..., callbacks=[HoldMask(sparse.mask)])
```
"""


def save_pretrained(sparse: SparseModel, folder: Path | str, *, method: str, tokenizer: Any = None) -> None:
    """Write configuration, weights (safetensors), `mask.safetensors` and the model card `README.md` to a new folder.

    The card states density, method, accuracy and cost as `sparse.cycles` records them. The folder is whole or not
    there. Raises MaskError where a pruned weight is not zero, SwampError for other than transformers models and a
    folder that holds something.
    """
    model, path = cast(Any, sparse.model), Path(folder)
    if not isinstance(sparse.model, PreTrainedModel):
        raise SwampError(f"{type(model).__name__} is no transformers model: use SparseModel.save(path).")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SwampError(f"{path} holds something already. Name a new folder, or empty it.")
    sparse.mask.require_zeros(dict(model.named_parameters()))
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        model.save_pretrained(beside)
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)
        sparse.mask.save(beside / "mask.safetensors")
        write_atomic(beside / "README.md", model_card(sparse, method, path.name).encode())
        beside.replace(path)
    except OSError as error:
        raise SwampError(f"could not write {path}: {error.strerror or error}. Choose another folder.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def from_pretrained(folder: Path | str) -> SparseModel:
    """Read what `save_pretrained` wrote; its `cycles` are empty. Nothing is downloaded and no code of the folder runs.

    Raises SwampError for a folder that is not whole, asks for code of its own, or names a class that transformers
    does not have; MaskError where a pruned weight is not zero.
    """
    path = Path(folder)
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
        (name,) = config["architectures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SwampError(f"{path} holds no transformers model that swamp saved ({error}).") from error
    kind: Any = getattr(transformers, str(name), None)
    known = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    if "auto_map" in config or not known:
        raise SwampError(f"{path} needs code that transformers does not have ({name}). Code of a model is never run.")
    mask = Mask.load(path / "mask.safetensors")
    try:
        model = cast(Any, kind).from_pretrained(path, local_files_only=True, use_safetensors=True)
    except Exception as error:  # transformers and safetensors raise whatever a damaged file makes them
        raise SwampError(f"{path} cannot be read as a {name}: {error}") from error
    mask.check(model)
    mask.require_zeros(dict(model.named_parameters()))
    return SparseModel(model, mask, ())


def model_card(sparse: SparseModel, method: str, folder: str) -> str:
    """The README.md of a sparse model: density, method, accuracy, cost."""
    mask, last = sparse.mask, sparse.cycles[-1] if sparse.cycles else None
    rows = [
        ("density of the prunable weights", f"{mask.density:.4f} (sparsity {mask.sparsity:.4f})"),
        ("density of all parameters", f"{mask.density_of_all(sparse.model):.4f}"),
        ("method", method),
    ]
    if last is None:
        rows += [("accuracy", "not recorded"), ("cost", "not recorded")]
    else:
        rows += [(f"{name}, test data", f"{value:.4f}") for name, value in last.metrics.test.items()]
        cost = last.total
        spent = (
            f"{cost.steps:,} steps, {cost.samples:,} examples, {cost.operations:.3g} operations, {cost.seconds:.0f} s"
        )
        rows.append(("cost of all trainings for it", spent))
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    return _CARD.format(
        kind=type(sparse.model).__name__, kept=mask.nnz, prunable=mask.prunable, rows=table, folder=folder
    )
