"""The files of a byte-level BPE: vocab.json + merges.txt, and tokenizer.json.

Byte-level: every byte has a printable stand-in, so that a token is a string (GPT-2's
`bytes_to_unicode`): the 188 printable Latin-1 characters stand for themselves, the other 68 bytes
for U+0100 onwards, in order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property
from operator import itemgetter
from pathlib import Path
from typing import Any

import orjson

from gptbridge.data.tokenizers.interface import END_OF_TEXT, identity_of

_END_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eod>")

GPT2_SPLIT: dict[str, Any] = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": True,
    "use_regex": True,
}


@cache
def byte_symbols() -> tuple[str, ...]:
    """Return the stand-in of each of the 256 bytes."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in printable else next(spare)) for byte in range(256))


@dataclass(frozen=True)
class BpeDefinition:
    """All that decides the ids of a byte-level BPE.

    `vocabulary` maps tokens in stand-in spelling to ids, `merges` are in order of priority,
    `special` are tokens that no text encodes to. The ids of both together are 0..n-1. `end` is the
    token that ends a text; None: there is none.
    """

    vocabulary: dict[str, int]
    merges: tuple[tuple[str, str], ...]
    special: dict[str, int]
    pre_tokenizer: dict[str, Any] = field(default_factory=lambda: dict(GPT2_SPLIT))
    normalizer: dict[str, Any] | None = None
    end: str | None = None

    @property
    def end_of_text(self) -> int | None:
        """The id of `end`; None where there is none."""
        return None if self.end is None else self.special.get(self.end, self.vocabulary.get(self.end))

    @property
    def usual_end(self) -> str | None:
        """The token that ends a text where no file says it: the first that has a usual name."""
        return next((name for name in _END_NAMES if name in self.special), None)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return len(self.vocabulary) + len(self.special)

    @cached_property
    def identity(self) -> str:
        """The sha256 over everything here."""
        return identity_of(
            {
                "model": "byte-level BPE",
                "vocabulary": self.vocabulary,
                "merges": self.merges,
                "special": self.special,
                "pre_tokenizer": self.pre_tokenizer,
                "normalizer": self.normalizer,
            }
            | ({} if self.end == self.usual_end else {"end": self.end})
        )

    def token_bytes(self) -> list[bytes]:
        """Return the bytes of each id."""
        value = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
        tokens = [b""] * self.vocab_size
        for token, i in self.vocabulary.items():
            tokens[i] = bytes(value[symbol] for symbol in token)
        for token, i in self.special.items():
            tokens[i] = token.encode()
        return tokens

    def tokenizer_json(self, *, special_in_text: bool) -> dict[str, Any]:
        """Return the content of a Hugging Face tokenizer.json.

        With `special_in_text` False it lists no special token, so that none is found in a text.
        """
        whole = {**self.vocabulary, **self.special} if special_in_text else self.vocabulary
        return {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [_added_token(t, i) for t, i in self.special.items()] if special_in_text else [],
            "normalizer": self.normalizer,
            "pre_tokenizer": self.pre_tokenizer,
            "post_processor": None,
            "decoder": dict(GPT2_SPLIT),
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": dict(sorted(whole.items(), key=itemgetter(1))),
                "merges": self.merges,
            },
        }


def _added_token(content: str, token_id: int) -> dict[str, Any]:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": token_id, "content": content, **plain, "special": True}


def write_bpe(definition: BpeDefinition, folder: Path) -> None:
    """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    content = definition.tokenizer_json(special_in_text=True)
    other = END_OF_TEXT if END_OF_TEXT in definition.special else definition.end
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "bos_token": other,
        "eos_token": definition.end,
        "unk_token": other,
    }
    merges = "".join(f"{left} {right}\n" for left, right in definition.merges)
    files = {
        "vocab.json": orjson.dumps(content["model"]["vocab"], option=orjson.OPT_INDENT_2),
        "merges.txt": f"#version: 0.2\n{merges}".encode(),
        "tokenizer.json": orjson.dumps(content, option=orjson.OPT_INDENT_2),
        "tokenizer_config.json": orjson.dumps(
            {key: value for key, value in config.items() if value is not None or key == "eos_token"},
            option=orjson.OPT_INDENT_2,
        ),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
