"""Reading a byte-level BPE from files that strangers made, and refusing what would encode wrongly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from gptbridge.data.tokenizers.bpe_files import BpeDefinition, byte_symbols
from gptbridge.data.tokenizers.interface import END_OF_TEXT
from gptbridge.errors import BadInput, printable
from gptbridge.files import read_limited

FILE_LIMIT = 64 << 20

# The names of the two files: Hugging Face's, OpenAI's, Megatron's.
VOCABULARIES = (
    ("vocab.json", "merges.txt"),
    ("encoder.json", "vocab.bpe"),
    ("gpt2-vocab.json", "gpt2-merges.txt"),
)

# The parts of a tokenizer.json's model that change ids: what each must be.
_PLAIN_MODEL: dict[str, tuple[Any, ...]] = {
    "type": ("BPE", None),
    "dropout": (None, 0.0),
    "unk_token": (None, "", END_OF_TEXT),  # never used: every byte is in the vocabulary
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "byte_fallback": (None, False),
    "ignore_merges": (None, False),
}


def read_tokenizer_json(path: Path) -> BpeDefinition:
    """Return the definition in a tokenizer.json; BadInput names what is wrong or not byte-level BPE."""
    content = _read_object(path)
    model = content.get("model")
    if not isinstance(model, dict):
        raise BadInput("no model in this tokenizer.json", where=path)
    for key, allowed in _PLAIN_MODEL.items():
        if model.get(key) not in allowed:
            raise BadInput(
                f"model.{key} is {printable(model.get(key))!r}",
                where=path,
                allowed="byte-level BPE: " + " or ".join(repr(value) for value in allowed),
            )
    vocabulary = _checked_ids(model.get("vocab"), path)
    special = _special_tokens(content.get("added_tokens") or [], vocabulary, path)
    merges = _pairs(_listed(model.get("merges"), "merges", path), path)
    definition = BpeDefinition(
        {token: i for token, i in vocabulary.items() if token not in special},
        merges,
        special,
        _plain_pre_tokenizer(content.get("pre_tokenizer"), path),
        _plain_normalizer(content.get("normalizer"), path),
    )
    return checked(definition, path)


def find_vocabulary(folder: Path) -> tuple[Path, Path] | None:
    """Return the two files of a GPT-2 vocabulary, by whichever names they go; None where there are none."""
    pairs = ((folder / vocabulary, folder / merges) for vocabulary, merges in VOCABULARIES)
    return next((pair for pair in pairs if pair[0].exists()), None)


def read_vocab_and_merges(files: tuple[Path, Path]) -> BpeDefinition:
    """Return the definition in GPT-2's vocab.json and merges.txt, split by GPT-2's rule."""
    vocabulary = _checked_ids(_read_object(files[0]), files[0])
    path = files[1]
    try:
        lines = read_limited(path, FILE_LIMIT, "a tokenizer").decode().split("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"not UTF-8 at byte {error.start}", where=path) from error
    if lines[0].startswith("#version"):
        del lines[0]
    merges = _pairs([line.rstrip("\r") for line in lines if line.rstrip("\r")], path)
    special = {END_OF_TEXT: vocabulary.pop(END_OF_TEXT)} if END_OF_TEXT in vocabulary else {}
    return checked(BpeDefinition(vocabulary, merges, special), files[0].parent)


def _read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; fast, for each worker reads it.

    A token spelt twice is not seen here, but one of its ids is then missing.
    """
    try:
        content = orjson.loads(read_limited(path, FILE_LIMIT, "a tokenizer"))
    except ValueError as error:
        raise BadInput(f"not JSON: {printable(error)}", where=path) from error
    if not isinstance(content, dict):
        raise BadInput("not a JSON object", where=path)
    return content


def _checked_ids(vocabulary: object, path: Path) -> dict[str, int]:
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise BadInput("no vocabulary: tokens and their ids", where=path)
    for token, i in vocabulary.items():
        if type(i) is not int or i < 0:
            raise BadInput(
                f"the id of {printable(token)!r} is {printable(i)}", where=path, allowed="0, 1, 2, ..."
            )
    return vocabulary


def _special_tokens(entries: object, vocabulary: dict[str, int], path: Path) -> dict[str, int]:
    """Return the added tokens; each is special, so that no text encodes to it."""
    special: dict[str, int] = {}
    for entry in _listed(entries, "added_tokens", path):
        token, i = (entry.get("content"), entry.get("id")) if isinstance(entry, dict) else (None, None)
        if not isinstance(token, str) or not token or type(i) is not int:
            raise BadInput("an added token without content or id", where=path)
        if entry.get("special") is not True:
            raise BadInput(
                f"the added token {printable(token)!r} is not special: it would cut words in two",
                where=path,
                allowed="special added tokens",
            )
        if token in special or vocabulary.get(token, i) != i:
            raise BadInput(f"the added token {printable(token)!r} has two ids", where=path)
        special[token] = i
    return special


def _listed(value: object, name: str, path: Path) -> list[Any]:
    if not isinstance(value, list):
        raise BadInput(f"{name} is not a list", where=path)
    return value


def _pairs(merges: list[Any], path: Path) -> tuple[tuple[str, str], ...]:
    """Return the merges, each two tokens in a list or with a space between; by sets: there are many."""
    parts = [merge.split(" ") if type(merge) is str else merge for merge in merges]
    if set(map(type, parts)) <= {list} and set(map(len, parts)) <= {2}:
        tokens = list(chain.from_iterable(parts))
        if set(map(type, tokens)) <= {str} and "" not in tokens:
            return tuple(map(tuple, parts))
    wrong = next(merge for merge, part in zip(merges, parts, strict=True) if not _is_pair(part))
    raise BadInput(f"the merge {printable(wrong)!r} is not a pair of tokens", where=path)


def _is_pair(part: object) -> bool:
    return isinstance(part, list) and len(part) == 2 and all(isinstance(t, str) and t for t in part)


def _plain_pre_tokenizer(value: object, path: Path) -> dict[str, Any]:
    """Accept ByteLevel splitting by GPT-2's rule, or a Split by regex before a plain ByteLevel.

    Which regular expressions are known is the encoder's to say: it runs none from a file.
    """
    steps = (
        value.get("pretokenizers") if isinstance(value, dict) and value.get("type") == "Sequence" else [value]
    )
    known = isinstance(steps, list) and bool(steps) and all(isinstance(step, dict) for step in steps)
    if known and isinstance(steps, list):
        *splits, last = steps
        known = (
            last.get("type") == "ByteLevel"
            and not last.get("add_prefix_space", True)
            and last.get("use_regex", True) is (not splits)
            and all(step.get("type") == "Split" for step in splits)
        )
    if not known or not isinstance(value, dict):
        raise BadInput(
            f"pre_tokenizer {printable(value)!r} is not supported",
            where=path,
            allowed="ByteLevel without add_prefix_space, or Split by regex and then ByteLevel",
        )
    # trim_offsets has no influence on ids: without it, the same tokenizer has one identity
    return _without_offsets(value)


def _without_offsets(step: dict[str, Any]) -> dict[str, Any]:
    if step["type"] == "Sequence":
        return {**step, "pretokenizers": [_without_offsets(inner) for inner in step["pretokenizers"]]}
    return {"use_regex": True, **step, "trim_offsets": True} if step["type"] == "ByteLevel" else step


def _plain_normalizer(value: object, path: Path) -> dict[str, Any] | None:
    if value is None or value == {"type": "NFC"}:
        return value if isinstance(value, dict) else None
    raise BadInput(f"normalizer {printable(value)!r} is not supported", where=path, allowed="none, or NFC")


def checked(definition: BpeDefinition, path: Path) -> BpeDefinition:
    """Return `definition` when its ids are 0..n-1, it knows all bytes and its merges are made of tokens."""
    vocabulary = definition.vocabulary
    _require_dense([*vocabulary.values(), *definition.special.values()], path)
    symbols = set(byte_symbols())
    missing = symbols.difference(vocabulary)
    if missing:
        raise BadInput(f"{len(missing)} of the 256 byte tokens are missing", where=path)
    if "" in vocabulary or not symbols.issuperset("".join(vocabulary)):
        token = next(token for token in vocabulary if not token or not symbols.issuperset(token))
        raise BadInput(f"the token {printable(token)!r} is not spelt in byte-level symbols", where=path)
    if len(set(definition.merges)) < len(definition.merges):
        (left, right), _ = Counter(definition.merges).most_common(1)[0]
        raise BadInput(f"the merge {printable(left)!r} {printable(right)!r} appears twice", where=path)
    for left, right in definition.merges:
        if not (left in vocabulary and right in vocabulary and left + right in vocabulary):
            token = next(token for token in (left, right, left + right) if token not in vocabulary)
            raise BadInput(
                f"the merge {printable(left)!r} {printable(right)!r} needs {printable(token)!r}, "
                "which is not in the vocabulary",
                where=path,
            )
    return definition


def _require_dense(ids: Iterable[int], path: Path) -> None:
    ordered = sorted(ids)
    if ordered == list(range(len(ordered))):
        return
    expected, wrong = next((n, i) for n, i in enumerate(ordered) if n != i)
    problem = f"the id {wrong} appears twice" if wrong < expected else f"no token has the id {expected}"
    raise BadInput(problem, where=path, allowed=f"each of 0..{len(ordered) - 1} once")
