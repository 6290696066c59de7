"""What every JSON object of a run says of itself: whose it is, where it lies, and a checksum over all of it.

The files of tensors say the same in their metadata, where `swamp.files` keeps the checksum.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any, cast

from swamp.errors import CorruptFile
from swamp.files import newer

VERSION = 2
"""Of the layout of run directories: see docs/reliability.md, Older versions."""
_SEAL = "seal"


def sealed(value: Mapping[str, Any], about: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Plain values with a seal: `about` (run and place), the version, and a checksum. NaN becomes None."""
    # As it will be read back: keys are strings there, and tuples lists.
    plain: dict[str, Any] = json.loads(json.dumps(finite(dict(value))))
    seal: dict[str, Any] = {"version": VERSION, **(about or {})}
    return {**plain, _SEAL: {**seal, "checksum": _checksum(plain, seal)}}


def unsealed(value: Any, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The values, and what their seal says; nothing where they have none, as all of before there were seals.

    Raises CorruptFile for what is no object or does not match its checksum, SwampError for one of a later version.
    """
    if not isinstance(value, dict):
        raise CorruptFile(
            f"{where} is damaged: it holds {type(value).__name__}, not an object. Restore it from a copy."
        )
    plain = dict(cast("dict[str, Any]", value))
    found = plain.pop(_SEAL, {})
    if not found and _SEAL not in value:
        return plain, {}
    seal: dict[str, Any] = dict(cast("dict[str, Any]", found)) if isinstance(found, dict) else {}
    version = seal.get("version")
    if seal.pop("checksum", None) != _checksum(plain, seal) or not isinstance(version, int):
        raise CorruptFile(f"{where} is damaged: it does not match its own checksum. Restore it from a copy.")
    if version > VERSION:
        raise newer(where, f"format {version}, this one reads up to {VERSION}")
    return plain, seal


def require_own(where: str, said: Mapping[str, Any], about: Mapping[str, str], *, strict: bool) -> None:
    """Raise CorruptFile unless a file says of itself that it is what `about` asks for.

    strict: also where it says nothing, as those of older versions do.
    """
    for name, expected in about.items():
        if not strict and name not in said:
            continue
        found = said.get(name)
        if found == expected:
            continue
        if found is None:
            raise CorruptFile(
                f"{where} is not of this run: it does not say whose it is, as all of this run's files do."
            )
        if name == "run":
            other = "another run" if strict else "another run or version of swamp"
            raise CorruptFile(f"{where} belongs to {other} ({found}, this one is {expected}).")
        raise CorruptFile(f"{where} is {found} of its run, which was moved or copied here.")


def finite(value: Any) -> Any:
    """The same plain values with None for every number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in cast("dict[str, Any]", value).items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in cast("list[Any]", value)]
    return value


def _checksum(plain: Mapping[str, Any], seal: Mapping[str, Any]) -> str:
    text = json.dumps({**plain, _SEAL: seal}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
