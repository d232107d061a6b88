"""The built-in tokenizer: byte b is id b, and 256 ends a document. It needs no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.data.tokenizers.bpe_files import BpeDefinition, byte_symbols, write_bpe
from gptbridge.data.tokenizers.interface import END_OF_TEXT


class ByteTokenizer:
    """UTF-8 bytes as tokens: a byte-level BPE without merges, whose encoder is a copy."""

    vocab_size = 257
    end_of_text: int | None = 256
    cuts_before_space = True

    def __init__(self) -> None:
        vocabulary = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        self._definition = BpeDefinition(vocabulary, (), {END_OF_TEXT: 256}, end=END_OF_TEXT)
        self.identity = self._definition.identity

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Return the bytes of `text`."""
        return np.frombuffer(text.encode(), np.uint8).astype(np.uint32)

    def decode(self, ids: NDArray[np.integer[Any]] | list[int]) -> str:
        """Return the text of `ids`."""
        tokens = self._definition.token_bytes()
        return b"".join(tokens[i] for i in ids).decode(errors="replace")

    def save(self, folder: Path) -> None:
        """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json."""
        write_bpe(self._definition, folder)
