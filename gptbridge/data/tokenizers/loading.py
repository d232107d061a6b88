"""From a name or a folder to a tokenizer."""

from __future__ import annotations

from pathlib import Path

from gptbridge.data.tokenizers.byte import ByteTokenizer
from gptbridge.data.tokenizers.interface import Tokenizer
from gptbridge.errors import BadInput


def load_tokenizer(name_or_folder: str) -> Tokenizer:
    """Return the tokenizer called `byte`, or the one whose files lie in a folder.

    Raises BadInput for a folder without a tokenizer, or with a damaged one.
    """
    if name_or_folder == "byte":
        return ByteTokenizer()
    folder = Path(name_or_folder)
    if (folder / "tokenizer.json").exists():
        return _load_bpe(folder / "tokenizer.json")
    if (folder / "vocab.json").exists():
        return _load_bpe(folder)
    raise BadInput(
        "no tokenizer here",
        where=name_or_folder,
        allowed="byte, or a folder with tokenizer.json, or vocab.json and merges.txt",
    )


def _load_bpe(path: Path) -> Tokenizer:
    from gptbridge.data.tokenizers.bpe import BpeTokenizer
    from gptbridge.data.tokenizers.bpe_reading import read_tokenizer_json, read_vocab_and_merges

    definition = read_vocab_and_merges(path) if path.is_dir() else read_tokenizer_json(path)
    byte = ByteTokenizer()
    return byte if definition.identity() == byte.identity else BpeTokenizer(definition, where=path)
