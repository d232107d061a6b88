"""The two libraries that can encode and train a byte-level BPE, with the same ids and merges.

gigatoken is many times faster and young; where it is not installed, tokenizers does the work. Both are
imported when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from gptbridge.data.tokenizers.interface import END_OF_TEXT
from gptbridge.errors import UsageError, printable

Encode = Callable[[str], NDArray[np.uint32]]
Merges = list[tuple[bytes, bytes]]

ENGINES = ("gigatoken", "tokenizers")  # the first that is installed is taken

_READ = 1 << 20  # bytes of a corpus at a time
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# A stranger's regular expression might never end. gigatoken runs none; here those that were published pass.
_KNOWN_SPLITS = frozenset(
    _CONTRACTIONS + rf"|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*"
    rf"|\s*[\r\n]{lines}|\s+(?!\S)|\s+"
    for digits in (r"\p{N}", r"\p{N}{1,3}")  # Qwen 2; GPT-4, Llama 3
    for lines in ("", "+")
)


@cache
def _library(name: str | None) -> tuple[str, Any]:
    """Return an engine's name and its module; UsageError where none is installed."""
    for candidate in ENGINES if name is None else (name,):
        try:
            return candidate, import_module(candidate)
        except ImportError:
            continue
    raise UsageError(
        f"a byte-level BPE needs {' or '.join(ENGINES)}, and neither is installed",
        hint="Run: pip install tokenizers",
    )


def bpe_encoder(content: dict[str, Any], engine: str | None = None) -> Encode:
    """Return what encodes text by a tokenizer.json; ValueError where an engine cannot."""
    name, library = _library(engine)
    text = orjson.dumps(content)
    try:
        if name == "gigatoken":
            # the backend's own method: one call a document, without the wrapper's
            encode: Encode = library.Tokenizer.from_json(text).backend.encode
            return encode
        _require_known_splits(content.get("pre_tokenizer"))
        return _encoder_of(library.Tokenizer.from_str(text.decode()))
    except Exception as error:  # neither raises anything narrower
        raise ValueError(printable(str(error).partition("\n")[0])) from error


def _encoder_of(tokenizer: Any) -> Encode:
    def encode(text: str) -> NDArray[np.uint32]:
        text.encode()  # a lone surrogate is refused here
        return np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.uint32)

    return encode


def _require_known_splits(step: Any) -> None:
    for inner in step.get("pretokenizers", [step]) if isinstance(step, dict) else ():
        pattern = inner.get("pattern", {}).get("Regex") if inner.get("type") == "Split" else None
        if inner.get("type") == "Split" and pattern not in _KNOWN_SPLITS:
            raise ValueError(f"the regular expression {printable(pattern, 80)!r} is not known, and not run")


def bpe_merges(corpus: Path, vocab_size: int, engine: str | None = None) -> Merges:
    """Return the merges of a vocabulary with 256 bytes and end-of-text, which ends each document."""
    name, library = _library(engine)
    if name == "gigatoken":
        merges: Merges = library.train_bpe(corpus, vocab_size, [END_OF_TEXT], separator=END_OF_TEXT.encode())[
            1
        ]
        return merges
    level = library.pre_tokenizers.ByteLevel
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = level(add_prefix_space=False)
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=level.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_documents(corpus), trainer)
    from gptbridge.data.tokenizers.bpe_files import byte_symbols

    value = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    pairs = orjson.loads(tokenizer.to_str())["model"]["merges"]
    return [(bytes(value[c] for c in left), bytes(value[c] for c in right)) for left, right in pairs]


def _documents(corpus: Path) -> Iterator[str]:
    end, rest = END_OF_TEXT.encode(), b""
    with corpus.open("rb") as file:
        while chunk := file.read(_READ):
            *whole, rest = (rest + chunk).split(end)
            yield from (text.decode() for text in whole)
