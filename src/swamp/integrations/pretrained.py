"""Sparse transformers models in a Hugging Face folder, with the mask and a model card."""

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

{nnz:,} of {prunable:,} prunable weights are active; the others are exactly zero.

| | |
|---|---|
{rows}

Zeros do not make dense kernels faster: the model is small when compressed, and suitable for sparse kernels.

```python
import transformers

model = transformers.{kind}.from_pretrained("{folder}")  # an ordinary model with zeros
```

To continue training and keep the zeros (`pip install 'swamp[huggingface]'`):

```python
from swamp.integrations.huggingface import HoldMask
from swamp.integrations.pretrained import from_pretrained

sparse = from_pretrained("{folder}")  # checks the zeros
trainer = transformers.Trainer(sparse.model, ..., callbacks=[HoldMask(sparse.mask)])
```
"""


def save_pretrained(sparse: SparseModel, folder: Path | str, *, method: str, tokenizer: Any = None) -> None:
    """Write a sparse transformers model to a new folder.

    The folder has configuration, weights (safetensors), `mask.safetensors`, and the model card `README.md` with
    density, method, accuracy and cost as recorded in `sparse.cycles`. It is written completely or not at all.

    Args:
        sparse: The pruned model, from `swamp.prune`.
        folder: A folder that does not exist, or is empty.
        method: Name of the pruning method, for the card.
        tokenizer: Optional tokenizer to save with the model.

    Raises:
        MaskError: If a pruned weight is not zero.
        SwampError: For models of other libraries, and a folder that is not empty.

    Example:
        ```python
        save_pretrained(sparse, "bert-sparse", method="swamp", tokenizer=tokenizer)
        ```
    """
    model, path = cast(Any, sparse.model), Path(folder)
    if not isinstance(sparse.model, PreTrainedModel):
        raise SwampError(f"{type(model).__name__} is not a transformers model: use SparseModel.save(path).")
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SwampError(f"{path} is not empty. Choose a new folder, or empty it.")
    sparse.mask.require_zeros(dict(model.named_parameters()))
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        model.save_pretrained(beside)
        if tokenizer is not None:
            tokenizer.save_pretrained(beside)
        sparse.mask.save(beside / "mask.safetensors")
        write_atomic(beside / "README.md", _model_card(sparse, method, path.name).encode())
        beside.replace(path)
    except OSError as error:
        raise SwampError(f"could not write {path}: {error.strerror or error}. Choose another folder.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def from_pretrained(folder: Path | str) -> SparseModel:
    """Read a model that `save_pretrained` wrote. Nothing is downloaded, and no code in the folder is run.

    Args:
        folder: The folder.

    Returns:
        The model with its mask; `cycles` is empty.

    Raises:
        MaskError: If a pruned weight is not zero.
        SwampError: For a folder that is incomplete, needs its own code, or names a class that transformers does not
            have.

    Example:
        ```python
        sparse = from_pretrained("bert-sparse")
        ```
    """
    path = Path(folder)
    try:
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
        (name,) = config["architectures"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SwampError(f"{path} is not a transformers model saved by swamp ({error}).") from error
    kind: Any = getattr(transformers, str(name), None)
    known = isinstance(kind, type) and issubclass(kind, PreTrainedModel)
    if "auto_map" in config or not known:
        raise SwampError(
            f"{path} needs code that transformers does not have ({name}). Code in a model folder is never run."
        )
    mask = Mask.load(path / "mask.safetensors")
    try:
        model = cast(Any, kind).from_pretrained(path, local_files_only=True, use_safetensors=True)
    except Exception as error:  # transformers and safetensors raise many types for a damaged file
        raise SwampError(f"{path} cannot be read as a {name}: {error}") from error
    mask.check(model)
    mask.require_zeros(dict(model.named_parameters()))
    return SparseModel(model, mask, ())


def _model_card(sparse: SparseModel, method: str, folder: str) -> str:
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
        spent = f"{cost.steps:,} steps, {cost.samples:,} examples, {cost.flops:.3g} FLOPs, {cost.seconds:.0f} s"
        rows.append(("cost of all trainings", spent))
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    return _CARD.format(
        kind=type(sparse.model).__name__, nnz=mask.nnz, prunable=mask.prunable, rows=table, folder=folder
    )
