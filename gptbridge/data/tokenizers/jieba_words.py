"""Chinese words, cut by jieba with its own dictionary."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cache
from typing import Any

from gptbridge.data.tokenizers.optional import require


class JiebaWords:
    """A jieba of our own: words that a program adds to the global one change nothing here."""

    def __init__(self) -> None:
        self.version: str = require("jieba", "Chinese text").__version__
        self._tokenizer = _own_tokenizer()

    def cut(self, text: str) -> Iterator[str]:
        """Yield the words of `text`; joined, they are `text`."""
        words: Iterator[str] = self._tokenizer.cut(text)
        return words


@cache
def _own_tokenizer() -> Any:
    library = require("jieba", "Chinese text")
    library.setLogLevel(logging.WARNING)
    return library.Tokenizer()  # its dictionary takes a second to read: once a process
