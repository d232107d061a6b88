"""From a name or a folder to a tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gptbridge.data.tokenizers.bpe_reading import VOCABULARIES
from gptbridge.data.tokenizers.byte import ByteTokenizer
from gptbridge.data.tokenizers.interface import Tokenizer
from gptbridge.errors import BadInput
from gptbridge.files import read_json


def load_tokenizer(name_or_folder: str) -> Tokenizer:
    """Return the tokenizer called `byte`, or the one whose files lie in a folder.

    The files tell the kind; `KIND:FOLDER` says it where they do not (bpe, sentencepiece, cpm,
    jieba-bpe). Raises BadInput for a folder without a tokenizer, or with a damaged one; UsageError
    when a library for it is not installed.
    """
    if name_or_folder == "byte":
        return ByteTokenizer()
    kind, colon, rest = name_or_folder.partition(":")
    if colon and kind in _LOADERS:
        return _LOADERS[kind](Path(rest))
    folder = Path(name_or_folder)
    return _LOADERS[_kind_of(folder)](folder)


def _kind_of(folder: Path) -> str:
    config = folder / "tokenizer_config.json"
    if config.exists():
        content = read_json(config)
        known = content.get("gptbridge_tokenizer") or _CLASSES.get(str(content.get("tokenizer_class")))
        if known in _LOADERS:
            return str(known)
    names = ("tokenizer.json", *(name for name, _ in VOCABULARIES))
    if any((folder / name).exists() for name in names):
        return "bpe"
    if folder.is_dir() and any(folder.glob("*.model")):
        return "sentencepiece"
    raise BadInput(
        "no tokenizer here",
        where=folder,
        allowed="byte, or a folder with tokenizer.json, a .model, or "
        + ", or ".join(" and ".join(pair) for pair in VOCABULARIES),
    )


def _load_bpe(folder: Path) -> Tokenizer:
    from gptbridge.data.tokenizers.bpe import BpeTokenizer
    from gptbridge.data.tokenizers.bpe_reading import (
        find_vocabulary,
        read_tokenizer_json,
        read_vocab_and_merges,
    )
    from gptbridge.data.tokenizers.special_tokens import with_special_tokens

    path = folder / "tokenizer.json"
    pair = None if path.exists() else find_vocabulary(folder)
    definition = read_vocab_and_merges(pair) if pair else read_tokenizer_json(path)
    definition = with_special_tokens(definition, folder)
    byte = ByteTokenizer()
    return byte if definition.identity == byte.identity else BpeTokenizer(definition, where=folder)


def _load_sentencepiece(folder: Path) -> Tokenizer:
    from gptbridge.data.tokenizers.sentencepiece import SentencePieceTokenizer

    return SentencePieceTokenizer(_only_model(folder))


def _load_cpm(folder: Path) -> Tokenizer:
    from gptbridge.data.tokenizers.sentencepiece import CpmTokenizer

    return CpmTokenizer(_only_model(folder))


def _load_jieba_bpe(folder: Path) -> Tokenizer:
    from gptbridge.data.tokenizers.jieba_bpe import JiebaBpeTokenizer

    return JiebaBpeTokenizer(folder / "tokenizer.json")


def _only_model(folder: Path) -> Path:
    models = sorted(folder.glob("*.model"))
    if len(models) != 1:
        raise BadInput(f"{len(models)} .model files", where=folder, allowed="one")
    return models[0]


_LOADERS: dict[str, Callable[[Path], Tokenizer]] = {
    "bpe": _load_bpe,
    "sentencepiece": _load_sentencepiece,
    "cpm": _load_cpm,
    "jieba-bpe": _load_jieba_bpe,
}

# The names by which the systems that made them call these tokenizers.
_CLASSES = {"GPTChineseTokenizer": "cpm", "CpmTokenizer": "cpm", "JiebaBPETokenizer": "jieba-bpe"}
