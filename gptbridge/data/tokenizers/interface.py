"""What every tokenizer offers, and how its identity is made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

END_OF_TEXT = "<|endoftext|>"


class Tokenizer(Protocol):
    """Text to token ids and back.

    `vocab_size` is one more than the largest id. `end_of_text` is the id that ends a document, if
    there is one. `identity` is a sha256 over all that decides the ids: it travels with datasets and
    checkpoints, and two tokenizers with the same identity are interchangeable, whatever files they
    came from. `cuts_before_space` tells that encode(a + b) is encode(a) followed by encode(b)
    wherever a ends in a visible ASCII character and b begins with an ASCII space or newline.
    """

    vocab_size: int
    end_of_text: int | None
    identity: str
    cuts_before_space: bool

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Return the ids of `text`; special tokens spelt out in it are text like any other.

        Raises UnicodeEncodeError when `text` holds a lone surrogate.
        """

    def decode(self, ids: NDArray[np.integer[Any]] | list[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD.

        Raises IndexError for an id beyond the vocabulary.
        """

    def save(self, folder: Path) -> None:
        """Write the files that `load_tokenizer`, and where the format allows transformers, open."""


def identity_of(definition: Mapping[str, Any]) -> str:
    """Return the sha256 (hex) of a definition's canonical JSON: sorted keys, no spaces, UTF-8."""
    return hashlib.sha256(orjson.dumps(definition, option=orjson.OPT_SORT_KEYS)).hexdigest()
