"""The tasks of GLUE (Wang et al. 2019) by name, from Hugging Face `datasets` or a folder of files."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from swamp.datasets.problem import DataOptions, Problem
from swamp.datasets.text.tables import Goal, Table, folder_tables, from_tables
from swamp.errors import SwampError
from swamp.optional import need
from swamp.training.order import Seed


@dataclass(frozen=True)
class GlueTask:
    """One task: its columns of text, its classes (none: a number is to be told), its validation part."""

    columns: tuple[str, ...]
    classes: tuple[str, ...]
    validation: str = "validation"


GLUE: Mapping[str, GlueTask] = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable")),
    "sst2": GlueTask(("sentence",), ("negative", "positive")),
    "mrpc": GlueTask(("sentence1", "sentence2"), ("not_equivalent", "equivalent")),
    "stsb": GlueTask(("sentence1", "sentence2"), ()),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate")),
    "mnli": GlueTask(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), "validation_matched"),
    "qnli": GlueTask(("question", "sentence"), ("entailment", "not_entailment")),
    "rte": GlueTask(("sentence1", "sentence2"), ("entailment", "not_entailment")),
    "wnli": GlueTask(("sentence1", "sentence2"), ("not_entailment", "entailment")),
}
"""Name -> task; the numbers of the classes are those of `datasets`."""


def glue(name: str, options: DataOptions, seed: Seed) -> Problem:
    """A task of GLUE; its published validation part is the test here, as the labels of its test part are secret."""
    task = GLUE[name]
    goal: Goal = "class" if task.classes else "number"
    if options.folder:
        tables = folder_tables(f"glue-{name}", options)
        tables.pop("test", None)
    else:
        tables = {part: _fetched(name, split) for part, split in (("train", "train"), ("test", task.validation))}
    text = options.text
    if not options.folder:
        text = replace(text, columns=text.columns or task.columns, label=text.label or "label")
    return from_tables(f"glue-{name}", tables, goal, replace(options, text=text), seed, task.classes)


def _builder(name: str) -> Any:
    build = partial(glue, name)
    what = f"{len(GLUE[name].classes)} classes" if GLUE[name].classes else "a number to tell"
    pairs = "pairs of sentences" if len(GLUE[name].columns) == 2 else "sentences"
    build.__doc__ = f"GLUE's {name}: {pairs}, {what}; by `datasets`, or files as for text-folder."
    return build


GLUE_TASKS: Mapping[str, Any] = {f"glue-{name}": _builder(name) for name in GLUE}


def _fetched(name: str, split: str) -> Table:
    library = need("datasets", "swamp[language]")
    where = f"GLUE's {name} ({split})"
    try:
        loaded: Any = library.load_dataset("nyu-mll/glue", name, split=split)
    except Exception as error:
        # Whatever a download may raise: connection, permission, a cache that is not there.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SwampError(
            f"{where} cannot be had: {reason}. Offline, put train and validation as .parquet, .jsonl or .tsv into a "
            f"folder and name it: --folder FOLDER."
        ) from error
    return Table(loaded.to_list(), where)
