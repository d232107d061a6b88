"""Byte-level BPE, encoded by whichever engine is there: GPT-2 and its kin."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.data.tokenizers.bpe_files import GPT2_SPLIT, BpeDefinition, write_bpe
from gptbridge.data.tokenizers.engines import bpe_encoder
from gptbridge.errors import BadInput


class BpeTokenizer:
    """A byte-level BPE whose special tokens never come out of a text."""

    def __init__(self, definition: BpeDefinition, *, where: Path | None = None) -> None:
        self._definition = definition
        self.vocab_size = definition.vocab_size
        self.identity = definition.identity
        self.end_of_text = definition.end_of_text
        # GPT-2's rule never lets a piece go on from a visible character over a space.
        self.cuts_before_space = definition.pre_tokenizer == GPT2_SPLIT and definition.normalizer is None
        try:
            self._encode = bpe_encoder(definition.tokenizer_json(special_in_text=False))
        except ValueError as error:
            raise BadInput(f"cannot be encoded: {error}", where=where) from error

    @cached_property
    def _tokens(self) -> list[bytes]:
        return self._definition.token_bytes()

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Return the ids of `text`."""
        text.encode()  # a lone surrogate is refused here, by an engine in words of its own
        ids: NDArray[np.uint32] = self._encode(text)
        return ids

    def decode(self, ids: NDArray[np.integer[Any]] | list[int]) -> str:
        """Return the text of `ids`."""
        return b"".join(self._tokens[i] for i in ids).decode(errors="replace")

    def save(self, folder: Path) -> None:
        """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json."""
        write_bpe(self._definition, folder)
