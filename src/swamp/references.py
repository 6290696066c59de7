"""References: `package.module:name` and `path/file.py:name` name an object of the user's code."""

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from swamp.errors import SwampError, type_and_message

PYTHON_PREFIX = "python:"
"""Beginning of the name, in config.json, of a model or task that a Python program passed as an object."""
_OTHER_PREFIXES = ("hf:", "timm:", "ppo:", "dqn:", "sac:", PYTHON_PREFIX)


def is_reference(name: str) -> bool:
    """Whether a name has the form of a reference, package.module:name or file.py:name."""
    return ":" in name and not name.startswith(_OTHER_PREFIXES)


def resolve(reference: str, what: str) -> Callable[..., Any]:
    """The function or class that a reference names. The current folder can be imported from.

    Args:
        reference: `package.module:name` or `path/file.py:name`.
        what: What the object is used for, such as "model", for the messages.

    Returns:
        The object.

    Raises:
        SwampError: The module cannot be imported, or it has no such function or class; with the nearest names.

    Examples:
        >>> resolve("torch.nn:Linear", "model").__name__
        'Linear'
    """
    place, _, name = reference.rpartition(":")
    module = _module(place, reference, what)
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise SwampError(f"{what} {reference}: {_missing(module, place, name)}")
    return found


def call(function: Callable[..., Any], reference: str, what: str, offered: Mapping[str, Any]) -> Any:
    """Call a function of the user with those of the `offered` values that it has a parameter for.

    Raises SwampError, with the error's type and line, if the function fails or needs something else.
    """
    parameters = parameters_of(function)
    given = {name: offered[name] for name in parameters if name in offered}
    needed = [name for name, one in parameters.items() if one.default is one.empty]
    if lacking := [name for name in needed if name not in given]:
        raise SwampError(
            f"{what} {reference}: the function needs {', '.join(lacking)}; it is called with those that it has "
            f"among {', '.join(offered) or 'none'}. Give the others a default."
        )
    try:
        return function(**given)
    except SwampError:
        raise
    except Exception as error:  # code of the user may raise anything
        raise SwampError(f"{what} {reference}: {_told(error)}") from error


def parameters_of(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """The parameters that `call` can give, by name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: one for name, one in parameters.items() if one.kind in keyword}


def source_digest(reference: str, what: str) -> str:
    """SHA-256 (first 16 hexadecimal digits) of the file in which the object is defined; empty if it has no file."""
    place = reference.rpartition(":")[0]
    file = getattr(_module(place, reference, what), "__file__", None)
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""


def _module(place: str, reference: str, what: str) -> ModuleType:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return _from_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except SwampError as error:
        raise SwampError(f"{what} {reference}: {error}") from error
    except ModuleNotFoundError as error:
        own = error.name is not None and (place == error.name or place.startswith(f"{error.name}."))
        hint = f" It is looked for in the current folder ({here}) and among the installed packages." if own else ""
        raise SwampError(f"{what} {reference}: there is no module named {error.name!r}.{hint}") from error
    except Exception as error:  # the file of a user may fail in any way while it is imported
        raise SwampError(f"{what} {reference}: {place} cannot be imported: {_told(error)}") from error


def _from_file(path: Path) -> ModuleType:
    file = path.resolve()
    if not file.is_file():
        raise SwampError(f"there is no file {path}.")
    name = file.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(file):
        return known
    # Under its own name, so that worker processes of a data loader find it; unless another module has that name.
    name = name if known is None else f"_swamp_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}_{name}"
    if name in sys.modules:
        return sys.modules[name]
    if str(file.parent) not in sys.path:
        sys.path.insert(0, str(file.parent))
    specification = importlib.util.spec_from_file_location(name, file)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _missing(module: ModuleType, place: str, name: str) -> str:
    defined = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    own = [key for key in defined if getattr(getattr(module, key), "__module__", "") == module.__name__]
    near = difflib.get_close_matches(name, defined, n=3, cutoff=0.5) or own[:6]
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    what = f"{name} in {place} is not a function or class." if hasattr(module, name) else f"{place} has no {name!r}."
    return what + hint


def _told(error: Exception) -> str:
    """Type and message of an error, and the line of the user's code."""
    text = type_and_message(error)
    if isinstance(error, SyntaxError):
        return f"{text} ({error.filename})"
    frame = error.__traceback__
    where = None
    while frame is not None:
        file = frame.tb_frame.f_code.co_filename
        if file != __file__ and not file.startswith("<") and "importlib" not in file and "site-packages" not in file:
            where = f"{file}, line {frame.tb_lineno}"
        frame = frame.tb_next
    return f"{text} ({where})" if where else text
