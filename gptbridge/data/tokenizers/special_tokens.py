"""Which special tokens the files beside a vocabulary add, under which ids, and which one ends a text.

As transformers' AutoTokenizer has it: first the added tokens in the order of their ids, then each named
special token that has no id yet, each under the next free id.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptbridge.data.tokenizers.bpe_files import BpeDefinition, byte_symbols
from gptbridge.data.tokenizers.interface import END_OF_TEXT
from gptbridge.errors import BadInput, printable
from gptbridge.files import INDEX_LIMIT, read_json

_NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_LISTED = ("additional_special_tokens", "extra_special_tokens")
_GPT2_CLASSES = ("GPT2Tokenizer", "GPT2TokenizerFast")
_GPT2_NAMES = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)


def with_special_tokens(definition: BpeDefinition, folder: Path) -> BpeDefinition:
    """Return `definition` with the special tokens that the other files of the folder tell of."""
    config = _read(folder / "tokenizer_config.json")
    names = _names(config, folder)
    vocabulary, special = dict(definition.vocabulary), dict(definition.special)
    made = {*byte_symbols(), *(left + right for left, right in definition.merges)}
    for token in [*_added(config, folder), *_tokens(names)]:
        if token in special or token in made:
            continue
        special[token] = vocabulary.pop(token, len(vocabulary) + len(special))
    found = replace(definition, vocabulary=vocabulary, special=special)
    # a class or file may also say that there is none
    end = _content(names["eos_token"]) if "eos_token" in names else found.usual_end
    return replace(found, end=end)


def _read(path: Path) -> dict[str, Any]:
    return read_json(path, limit=INDEX_LIMIT) if path.exists() else {}


def _names(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the named special tokens: of GPT-2's class, then of the files, of which the older one wins."""
    kind = config.get("tokenizer_class")
    is_gpt2 = kind in _GPT2_CLASSES or (
        kind is None and _read(folder / "config.json").get("model_type") == "gpt2"
    )
    older = {} if "added_tokens_decoder" in config else _read(folder / "special_tokens_map.json")
    listed = {key: config[key] for key in _LISTED if key in config}
    return (_GPT2_NAMES if is_gpt2 else {}) | config | older | listed


def _tokens(names: dict[str, Any]) -> Iterator[str]:
    """Yield the named special tokens in the order in which they take ids."""
    others = [key for key in names if key.endswith("_token") and key not in _NAMED]
    for key in (*_NAMED, *others):
        if token := _content(names.get(key)):
            yield token
    for key in _LISTED:
        value = names.get(key) or ()
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            if token := _content(item):
                yield token


def _content(value: object) -> str | None:
    """Return a token that is spelt as text or as an object with its content."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _added(config: dict[str, Any], folder: Path) -> list[str]:
    """Return the added tokens in the order of their ids; added_tokens.json is older than the other place."""
    place = folder / "tokenizer_config.json"
    if "added_tokens_decoder" in config:
        entries = config["added_tokens_decoder"]
        plain = isinstance(entries, dict) and all(
            key.isdecimal() and len(key) < 10 and isinstance(entry, dict) for key, entry in entries.items()
        )
        pairs = [(int(key), entry.get("content")) for key, entry in entries.items()] if plain else [(0, None)]
        for entry in entries.values() if plain else ():
            if entry.get("special") is not True:
                raise BadInput(
                    f"the added token {printable(entry.get('content'))!r} is not special: "
                    "it would cut words in two",
                    where=place,
                    allowed="special added tokens",
                )
    else:
        place = folder / "added_tokens.json"
        pairs = [(i, token) for token, i in _read(place).items()]
    if not all(type(i) is int and isinstance(token, str) and token for i, token in pairs):
        raise BadInput("an added token without content or id", where=place)
    return [token for _, token in sorted(pairs)]
