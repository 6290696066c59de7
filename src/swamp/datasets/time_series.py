"""Time series to classify, from .ts files (the format of the UCR and UEA archives, and of aeon)."""

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from swamp.datasets.arrays import Arrays, class_problem, with_test
from swamp.datasets.problem import DataOptions, Problem
from swamp.errors import SwampError
from swamp.training.rng import Seed


def series(options: DataOptions, seed: Seed) -> Problem:
    """Your own time series, --folder with NAME_TRAIN.ts and NAME_TEST.ts (as of UCR and UEA), or one .ts file.

    Series have equal lengths, one or several channels, and a class. Each channel is standardised by the training
    examples. Raises SwampError, with the line, for values that are missing or no numbers.
    """
    if not options.folder:
        raise SwampError("series: name your folder or file: --folder DIRECTORY, with NAME_TRAIN.ts and NAME_TEST.ts")
    return _problem("series", Path(options.folder).expanduser(), options, seed)


def italy_power_demand(options: DataOptions, seed: Seed) -> Problem:
    """Italy's power demand (UCR; in aeon): 67 training and 1,029 test days of 24 hours, summer or winter."""
    return _problem("italy-power-demand", _of_aeon("ItalyPowerDemand", options), options, seed)


def arrow_head(options: DataOptions, seed: Seed) -> Problem:
    """Outlines of arrowheads (UCR; in aeon): 36 training and 175 test series of 251 angles, 3 classes."""
    return _problem("arrow-head", _of_aeon("ArrowHead", options), options, seed)


def basic_motions(options: DataOptions, seed: Seed) -> Problem:
    """Motions of a smart watch (UEA; in aeon): 40 training and 40 test series of 6 x 100 readings, 4 classes."""
    return _problem("basic-motions", _of_aeon("BasicMotions", options), options, seed)


def _of_aeon(name: str, options: DataOptions) -> Path:
    """The folder of a data set inside the package aeon, which is not imported: its numba needs seconds and memory."""
    if options.folder:
        return Path(options.folder).expanduser()
    found = importlib.util.find_spec("aeon")
    for place in (found.submodule_search_locations or ()) if found else ():
        folder = Path(place) / "datasets" / "data" / name
        if folder.is_dir():
            return folder
    raise SwampError(
        f"the data of {name} are in the package aeon, which is not installed. Install its files alone: pip install "
        f"--no-deps aeon; or give a folder with {name}_TRAIN.ts and {name}_TEST.ts: --folder DIRECTORY"
    )


def _problem(task: str, path: Path, options: DataOptions, seed: Seed) -> Problem:
    if path.is_file():
        parts = with_test(task, *read_ts(path))
    else:
        files = {part: sorted(path.glob(f"*_{part.upper()}.ts")) for part in ("train", "test")}
        if any(len(found) != 1 for found in files.values()):
            have = ", ".join(file.name for found in files.values() for file in found) or "neither"
            raise SwampError(f"{task}: {path} needs one file NAME_TRAIN.ts and one NAME_TEST.ts, and has {have}.")
        parts = {part: read_ts(found[0]) for part, found in files.items()}
    shapes = {part: inputs.shape[1:] for part, (inputs, _) in parts.items()}
    if len(set(shapes.values())) > 1:
        raise SwampError(f"{task}: the series of the splits differ in shape: {shapes}.")
    return class_problem(task, parts, options, seed, axes=(0, 2))


def read_ts(path: Path) -> Arrays:
    """Series (n, channels, length) float32 and their classes (n,) as text.

    Raises:
        SwampError: The file cannot be read, or its series have no class, different lengths, or missing values.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SwampError(f"{path} cannot be read as a .ts file ({error}).") from error
    inputs: list[Sequence[Sequence[float]]] = []
    classes: list[str] = []
    data = False
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line.startswith("#"):
            continue
        if not data:
            _check_header(path, line)
            data = line.lower() == "@data"
            continue
        *channels, name = line.split(":")
        classes.append(name.strip())
        inputs.append([_numbers(path, number, channel) for channel in channels])
        if [*map(len, inputs[-1])] != [*map(len, inputs[0])] or len(set(map(len, inputs[-1]))) != 1:
            raise SwampError(f"{path}, line {number}: the series has another length than the first one. Pad it.")
    if not inputs:
        raise SwampError(f"{path} has no series after a line @data. Expected lines such as 0.1,0.2,0.3:class")
    return np.asarray(inputs, np.float32), np.asarray(classes)


def _check_header(path: Path, line: str) -> None:
    """Raise SwampError for a header that says what cannot be read here."""
    if re.fullmatch(r"@(timestamps\s+true|classlabel\s+false|targetlabel\s+true).*", line.lower()):
        raise SwampError(f"{path} states {line!r}; expected series without time stamps, each with a class.")


def _numbers(path: Path, line: int, text: str) -> list[float]:
    try:
        found = [float(one) for one in text.split(",")]
    except ValueError:
        found = [float("nan")]
    if not all(map(np.isfinite, found)):
        raise SwampError(
            f"{path}, line {line}: the series {text[:30]!r} ... has a value that is missing or no number. Fill it in."
        )
    return found
