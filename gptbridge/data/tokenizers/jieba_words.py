"""Chinese words, cut by jieba with its own dictionary."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from gptbridge.data.tokenizers.optional import require


class JiebaWords:
    """A jieba of our own: words that a program adds to the global one change nothing here."""

    def __init__(self) -> None:
        library = require("jieba", "Chinese text")
        library.setLogLevel(logging.WARNING)
        self.version: str = library.__version__
        self._tokenizer = library.Tokenizer()

    def cut(self, text: str) -> Iterator[str]:
        """Yield the words of `text`; joined, they are `text`."""
        words: Iterator[str] = self._tokenizer.cut(text)
        return words
