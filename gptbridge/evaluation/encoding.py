"""Text to the tokens of the model that is measured."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptbridge.data.tokenizers import Tokenizer
from gptbridge.data.tokenizers.interface import END_OF_TEXT
from gptbridge.errors import BadInput

Tokens = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Encoder:
    """Encodes for a model of `vocab_size`; with `special_tokens`, <|endoftext|> spelt out is that token."""

    tokenizer: Tokenizer
    vocab_size: int
    special_tokens: bool

    def encode(self, text: str, where: object) -> Tokens:
        """Return the ids of `text`. BadInput, with `where`, for a text or a tokenizer that does not fit."""
        end = self.tokenizer.end_of_text
        special = self.special_tokens and end is not None and self.tokenizer.decode([end]) == END_OF_TEXT
        parts = text.split(END_OF_TEXT) if special else [text]
        try:
            encoded = [self.tokenizer.encode(part) for part in parts]
        except UnicodeEncodeError as error:
            raise BadInput("a lone surrogate is no text", where=where) from error
        between = np.array([end or 0], np.int64)
        pieces = [piece for part in encoded for piece in (between, part.astype(np.int64))][1:]
        tokens = np.concatenate(pieces)
        if len(tokens) and int(tokens.max()) >= self.vocab_size:
            raise BadInput(
                f"the tokenizer's token {tokens.max()} is beyond the model's vocabulary of {self.vocab_size}",
                where=where,
                hint="The tokenizer is that of another model: --tokenizer names one",
            )
        return tokens.astype(np.int32)

    def end_of_text(self, why: str) -> int:
        """Return the end-of-text token; BadInput says `why` it is needed where there is none."""
        end = self.tokenizer.end_of_text
        if end is None or end >= self.vocab_size:
            raise BadInput(f"the tokenizer has no end-of-text token, which {why}", where="--tokenizer")
        return end
