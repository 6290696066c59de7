"""Sparse models in a folder with the layout of the Hugging Face Hub: weights, mask, configuration and a model card."""

import json
import math
import secrets
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from torch import nn

from swamp.algorithms import Cycle, SparseModel
from swamp.errors import CorruptFile, SwampError, final_line, first_line, need, warn
from swamp.files import load_tensors, parse_json, read_text, save_tensors, write_atomic
from swamp.masks import Mask
from swamp.model_copy import copied_model
from swamp.models import build_network
from swamp.models.language import is_pretrained
from swamp.references import is_reference
from swamp.runs.directory import write_json
from swamp.runtime import export
from swamp.training.module_extra_state import as_tensors, load_state

_CONFIG, _WEIGHTS, _MASK, _EXPORT = "config.json", "model.safetensors", "mask.safetensors", "export.safetensors"

_CARD = """# A sparse {kind}

{nnz:,} of {prunable:,} prunable weights are active; the others are exactly zero.

| | |
|---|---|
{rows}

Zeros do not make dense kernels faster: the model is small when compressed, and suitable for sparse kernels.

{usage}"""

_TRANSFORMERS = """```python
import transformers

model = transformers.{kind}.from_pretrained("{name}")  # an ordinary model with zeros
```

To continue training and keep the zeros (`pip install 'swamp[huggingface]'`):

```python
from swamp.integrations.huggingface import HoldMask
from swamp.pretrained import from_pretrained

sparse = from_pretrained("{name}")  # checks the zeros
trainer = transformers.Trainer(sparse.model, ..., callbacks=[HoldMask(sparse.mask)])
```
"""

_MODULE = """The weights and the mask, checked, in an ordinary module:

```python
from swamp.pretrained import from_pretrained

sparse = from_pretrained("{name}"{model})
sparse.model  # keep its zeros in any training loop: swamp.hold(sparse.model, sparse.mask, optimizer)
```
"""

_FAST = """
For inference, with kernels that skip zeros, and without the class of the model:

```python
import swamp

network = swamp.load("{name}")
```
"""

_DOWNLOAD = """
From the Hub, `huggingface_hub.snapshot_download("USER/NAME")` gives the path of the folder.
"""

_AGAIN = """
The same run again, with swamp {version}:

    swamp run --config run.json
"""


def save_pretrained(
    sparse: SparseModel,
    folder: Path | str,
    *,
    method: str,
    tokenizer: Any = None,
    example: Any = None,
    run: Mapping[str, Any] | None = None,
    architecture: Mapping[str, Any] | None = None,
) -> None:
    """Write a sparse model to a new folder, complete or not at all.

    The folder has `config.json`, `model.safetensors`, `mask.safetensors` (one bit a weight) and the model card
    `README.md` with density, method, metrics and cost as recorded in `sparse.cycles`. A transformers model is written
    as transformers reads it.

    Args:
        sparse: The pruned model, from `swamp.prune`; any module.
        folder: A folder that does not exist, or is empty.
        method: Name of the pruning method, for the card.
        tokenizer: Tokenizer of a transformers model, to save with it.
        example: What the network is called with, see `swamp.export`: then the folder also has `export.safetensors`,
            which `swamp.load(folder)` executes. A network that cannot be exported is saved without it, with a warning.
        run: The configuration of a run of the command line, to save as `run.json`.
        architecture: `name`, `shape` and `classes` of a network of `swamp.models.build_network`: then `from_pretrained`
            builds the model.

    Raises:
        MaskError: A pruned weight is not zero.
        SwampError: The folder is not empty, or cannot be written.

    Examples:
        ```python
        save_pretrained(sparse, "digits-sparse", method="swamp", example=x[:2])
        ```
    """
    model, path = sparse.model, Path(folder)
    # The folder is replaced as a whole: a process that works in it would be left in a deleted one.
    if path.exists() and (not path.is_dir() or any(path.iterdir()) or path.samefile(Path())):
        raise SwampError(f"{path} is not empty, or the working folder. Choose a new folder.")
    sparse.mask.require_zeros(dict(model.named_parameters()))
    beside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        beside.mkdir(parents=True)
        if _of_transformers(model):
            cast(Any, model).save_pretrained(beside)
            if tokenizer is not None:
                tokenizer.save_pretrained(beside)
        else:
            about = {"method": method, "architecture": architecture}
            write_json(beside / _CONFIG, _description(sparse, **about))
            save_tensors(beside / _WEIGHTS, as_tensors(model.state_dict()))
        sparse.mask.save(beside / _MASK)
        if run is not None:
            write_json(beside / "run.json", run)
        exported = example is not None and _exported(sparse, beside / _EXPORT, example)
        card = _model_card(sparse, method, path.name, run=run, exported=exported, architecture=architecture)
        write_atomic(beside / "README.md", card.encode())
        beside.replace(path)
    except OSError as error:
        raise SwampError(f"could not write {path}: {error.strerror or error}. Choose another folder.") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def from_pretrained(folder: Path | str, model: nn.Module | None = None) -> SparseModel:
    """Read a model that `save_pretrained` wrote. Nothing is downloaded, and no code in the folder is run.

    Args:
        folder: The folder.
        model: A module of the same architecture, which is copied. Not needed for a transformers model, nor for a
            network of swamp whose name is in the folder.

    Returns:
        The model with its mask. `cycles` has the record of the last cycle; for a transformers model it is empty.

    Raises:
        MaskError: A pruned weight is not zero.
        SwampError: The folder is incomplete, needs its own code, or names a class that transformers does not have; or
            the model is missing or another one.

    Examples:
        ```python
        sparse = from_pretrained("digits-sparse", model)
        ```
    """
    path = Path(folder)
    try:
        config = cast("dict[str, Any]", parse_json(read_text(path / _CONFIG)))
        of_swamp = config.get("library") == "swamp"
        (name,) = ("",) if of_swamp else config["architectures"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SwampError(f"{path} is not a model saved by swamp ({type(error).__name__}: {error}).") from error
    mask = Mask.load(path / _MASK)
    if not of_swamp:
        found = _read_transformers(path, config, str(name))
        mask.check(found)
        mask.require_zeros(dict(found.named_parameters()))
        return SparseModel(found, mask, ())
    found = _built(path, config) if model is None else copied_model(model)
    mask.check(found)
    weights, _ = load_tensors(path / _WEIGHTS)
    mask.require_zeros(weights)
    try:
        load_state(found, weights)
    except RuntimeError as error:
        raise SwampError(f"the model does not fit the weights in {path}: {final_line(error)}") from error
    try:
        cycles = (Cycle.from_json(config["record"], mask, weights),) if config.get("record") else ()
    except SwampError as error:
        raise CorruptFile(f"{path / _CONFIG}: {error}") from error
    return SparseModel(found, mask, cycles)


def push_to_hub(folder: Path | str, repository: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a folder of `save_pretrained` to the Hugging Face Hub, or to the server of HF_ENDPOINT.

    Args:
        folder: The folder.
        repository: "user/name"; it is created if it does not exist.
        private: Whether a new repository is private.
        token: Access token (default: that of `hf auth login`, or HF_TOKEN).

    Returns:
        The address of the model.

    Raises:
        SwampError: The folder has no model of swamp, huggingface_hub is not installed, or the server refuses.

    Examples:
        ```python
        push_to_hub("digits-sparse", "me/digits-sparse")
        ```
    """
    path = Path(folder)
    if not (path / _CONFIG).is_file() or not (path / _MASK).is_file():
        raise SwampError(f"{path} has no model of swamp. Write one with save_pretrained, or with swamp share RUN.")
    hub = need("huggingface_hub", "swamp[hub]")
    api = hub.HfApi(token=token)
    try:
        address = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(folder_path=path, repo_id=repository, commit_message="Upload a sparse model with swamp")
    except Exception as error:  # the library raises many types: of HTTP, of the network, of validation
        raise SwampError(f"could not upload {path} to {repository}: {first_line(error)}") from error
    return str(address)


def _of_transformers(model: nn.Module) -> bool:
    return any(kind.__module__.startswith("transformers.") for kind in type(model).__mro__) and hasattr(
        model, "save_pretrained"
    )


def _description(sparse: SparseModel, **about: Any) -> dict[str, Any]:
    """The config.json of a model that is not of transformers."""
    return {
        "library": "swamp",
        "swamp_version": version("swamp"),
        "model": type(sparse.model).__name__,
        **about,
        "sparsity": sparse.mask.sparsity,
        "nnz": sparse.mask.nnz,
        "prunable": sparse.mask.prunable,
        "record": sparse.cycles[-1].to_json() if sparse.cycles else None,
    }


def _exported(sparse: SparseModel, path: Path, example: Any) -> bool:
    try:
        export(sparse, path, example)
    except SwampError as error:
        warn(f"the folder has no {_EXPORT} for swamp.load: {error}")
        return False
    return True


def _built(path: Path, config: Mapping[str, Any]) -> nn.Module:
    """The network that the folder names."""
    known: Any = config.get("architecture") or {}
    try:
        name = str(known.get("name", ""))
        if not name or is_pretrained(name) or is_reference(name):
            raise SwampError(
                f"the model of {path} is of the class {config.get('model')}, which the folder does not hold. Build it "
                f"and pass it: from_pretrained({str(path)!r}, model)"
            )
        shape, classes = tuple(map(int, known["shape"])), int(known["classes"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise SwampError(
            f"{path / _CONFIG} has no complete architecture ({type(error).__name__}: {error}). Expected name, shape "
            "(such as [1, 8, 8]) and classes (a number); restore it, or pass the model."
        ) from error
    return build_network(name, shape, classes)


def _read_transformers(path: Path, config: Mapping[str, Any], name: str) -> nn.Module:
    transformers = need("transformers", "swamp[huggingface]")
    kind: Any = getattr(transformers, name, None)
    known = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
    if "auto_map" in config or not known:
        raise SwampError(
            f"{path} needs code that transformers does not have ({name}). Code in a model folder is never run."
        )
    try:
        return cast(Any, kind).from_pretrained(path, local_files_only=True, use_safetensors=True)
    except Exception as error:  # transformers and safetensors raise many types for a damaged file
        raise SwampError(f"{path} cannot be read as a {name}: {error}") from error


def _model_card(
    sparse: SparseModel,
    method: str,
    name: str,
    *,
    run: Mapping[str, Any] | None,
    exported: bool,
    architecture: Mapping[str, Any] | None,
) -> str:
    """The README.md of a sparse model: what the Hub reads, density, method, metrics, cost, and how to use it."""
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
    kind = type(sparse.model).__name__
    usage = (_TRANSFORMERS if _of_transformers(sparse.model) else _MODULE).format(
        kind=kind, name=name, model="" if architecture or _of_transformers(sparse.model) else ", model"
    )
    usage += _FAST.format(name=name) if exported else ""
    usage += _DOWNLOAD
    usage += _AGAIN.format(version=version("swamp")) if run else ""
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    text = _CARD.format(kind=kind, nnz=mask.nnz, prunable=mask.prunable, rows=table, usage=usage)
    return _metadata(sparse, name, task=str((run or {}).get("task", ""))) + text


def _metadata(sparse: SparseModel, name: str, *, task: str) -> str:
    """The head of the card, which the Hub reads: YAML, of which JSON is a part."""
    lines = [f"library_name: {'transformers' if _of_transformers(sparse.model) else 'swamp'}"]
    lines.append("tags: [swamp, pruned, sparse]")
    test = sparse.cycles[-1].metrics.test if sparse.cycles else {}
    finite = {metric: value for metric, value in test.items() if math.isfinite(value)}
    metrics = [{"type": metric, "name": metric, "value": value} for metric, value in finite.items()]
    if metrics:
        data = {"name": task or "not stated", "type": task or "other"}
        results = [{"task": {"type": "other"}, "dataset": data, "metrics": metrics}]
        lines.append(f"metrics: {json.dumps([metric['name'] for metric in metrics])}")
        lines.append(f"model-index: {json.dumps([{'name': name, 'results': results}])}")
    return "---\n" + "\n".join(lines) + "\n---\n"
