"""SentencePiece models, encoded by the library that made them; and CPM's Chinese on top of it."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from gptbridge.data.tokenizers.interface import END_OF_TEXT, identity_of
from gptbridge.data.tokenizers.jieba_words import JiebaWords
from gptbridge.data.tokenizers.optional import require
from gptbridge.errors import BadInput, printable
from gptbridge.files import read_limited

MODEL_LIMIT = 64 << 20


class SentencePieceTokenizer:
    """A .model file as it is: unigram, BPE, words or characters."""

    kind = "sentencepiece"
    cuts_before_space = False

    def __init__(self, path: Path) -> None:
        library = require("sentencepiece", "a SentencePiece model")
        self._model = read_limited(path, MODEL_LIMIT, "a SentencePiece model")
        self._path = path
        self._processor = library.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(self._model)
        except RuntimeError as error:
            raise BadInput(f"not a SentencePiece model: {printable(error, 120)}", where=path) from error
        self.vocab_size: int = self._processor.vocab_size()
        self.end_of_text = self._end_of_text()
        self.identity = identity_of(self._definition())

    def _definition(self) -> dict[str, str]:
        return {"model": self.kind, "sha256": hashlib.sha256(self._model).hexdigest()}

    def _id(self, piece: str) -> int | None:
        i: int = self._processor.piece_to_id(piece)
        return None if self._processor.is_unknown(i) else i

    def _end_of_text(self) -> int | None:
        end = self._id(END_OF_TEXT)
        if end is None:
            end = self._processor.eos_id()
        return None if end < 0 else end

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Return the ids of `text`."""
        return np.array(self._processor.encode(text.encode()), np.uint32)

    def decode(self, ids: NDArray[np.integer[Any]] | list[int]) -> str:
        """Return the text of `ids`."""
        text: str = self._processor.decode([int(i) for i in ids])
        return text

    def save(self, folder: Path) -> None:
        """Write tokenizer.model, and which kind of tokenizer it belongs to."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(self._model)
        (folder / "tokenizer_config.json").write_bytes(orjson.dumps({"gptbridge_tokenizer": self.kind}))


class CpmTokenizer(SentencePieceTokenizer):
    """CPM's Chinese: words cut by jieba, joined by spaces, then SentencePiece.

    Before that, space and newline within the words become U+2582 and U+2583 (PaddleNLP's
    GPTChineseTokenizer, Hugging Face's CpmTokenizer). `<eod>`, id 7 in CPM's vocabulary, ends a text.
    """

    kind = "cpm"

    _TO_BLOCKS = str.maketrans(" \n", "\u2582\u2583")
    _FROM_BLOCKS = str.maketrans({" ": None, "\u2582": " ", "\u2583": "\n"})

    def __init__(self, path: Path) -> None:
        self._jieba = JiebaWords()
        super().__init__(path)

    def _definition(self) -> dict[str, str]:
        return {**super()._definition(), "jieba": self._jieba.version}

    def _end_of_text(self) -> int | None:
        end = self._id("<eod>")
        if end is None:
            raise BadInput("no <eod> in this vocabulary: it is not CPM's", where=self._path)
        return end

    def encode(self, text: str) -> NDArray[np.uint32]:
        """Return the ids of `text`."""
        words = (word.translate(self._TO_BLOCKS) for word in self._jieba.cut(text))
        return super().encode(" ".join(words))

    def decode(self, ids: NDArray[np.integer[Any]] | list[int]) -> str:
        """Return the text of `ids`."""
        return super().decode(ids).translate(self._FROM_BLOCKS)
