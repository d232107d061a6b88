"""ModelScope GPT-3's tokenizer: words cut by jieba, each encoded by a Hugging Face tokenizer.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from gptbridge.data.tokenizers.bpe_reading import FILE_LIMIT
from gptbridge.data.tokenizers.interface import END_OF_TEXT, identity_of
from gptbridge.data.tokenizers.jieba_words import JiebaWords
from gptbridge.data.tokenizers.optional import require
from gptbridge.errors import BadInput, printable
from gptbridge.files import read_json

SEPARATOR = "<sep>"
_NEEDED = ("\n", SEPARATOR, END_OF_TEXT)


class JiebaBpeTokenizer:
    """Encodes jieba's words as pre-tokenized input; decodes up to the first `<sep>`."""

    kind = "jieba-bpe"
    cuts_before_space = False

    def __init__(self, path: Path) -> None:
        library = require("tokenizers", "ModelScope's tokenizer")
        self._words = JiebaWords()
        self._content = read_json(path, limit=FILE_LIMIT)
        if _has_regex(self._content):
            raise BadInput("a regular expression of its own, which is not run", where=path)
        try:
            self._tokenizer = library.Tokenizer.from_str(orjson.dumps(self._content).decode())
        except Exception as error:  # the library raises nothing narrower
            raise BadInput(f"not a tokenizer: {printable(error, 120)}", where=path) from error
        vocabulary: dict[str, int] = self._tokenizer.get_vocab(with_added_tokens=True)
        for token in _NEEDED:
            if token not in vocabulary:
                raise BadInput(f"{token!r} is not in this vocabulary: it is not ModelScope's", where=path)
        self.vocab_size = max(vocabulary.values()) + 1
        self.end_of_text: int | None = vocabulary[END_OF_TEXT]
        self.separator = vocabulary[SEPARATOR]
        self.identity = identity_of(
            {"model": self.kind, "jieba": self._words.version, "tokenizer": self._content}
        )

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Return the ids of `text`."""
        text.encode()  # a lone surrogate is refused here
        words = list(self._words.cut(text))
        encoding = self._tokenizer.encode(words, is_pretokenized=True, add_special_tokens=False)
        return np.array(encoding.ids, np.uint32)

    def decode(self, ids: NDArray[np.integer[Any]] | list[int]) -> str:
        """Return the text of `ids` up to the first `<sep>`."""
        numbers = [int(i) for i in ids]
        if numbers and max(numbers) >= self.vocab_size:
            raise IndexError(f"id {max(numbers)} is beyond the vocabulary of {self.vocab_size}")
        stop = numbers.index(self.separator) if self.separator in numbers else len(numbers)
        text: str = self._tokenizer.decode(numbers[:stop], skip_special_tokens=False)
        return text

    def save(self, folder: Path) -> None:
        """Write tokenizer.json, and which kind of tokenizer it belongs to."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.json").write_bytes(orjson.dumps(self._content, option=orjson.OPT_INDENT_2))
        (folder / "tokenizer_config.json").write_bytes(orjson.dumps({"gptbridge_tokenizer": self.kind}))


def _has_regex(content: dict[str, Any]) -> bool:
    """Whether a part that handles text brings a regular expression, which might never end."""
    parts: list[Any] = [
        content.get(name) for name in ("normalizer", "pre_tokenizer", "decoder", "post_processor")
    ]
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            if "Regex" in part:
                return True
            parts += part.values()
        elif isinstance(part, list):
            parts += part
    return False
