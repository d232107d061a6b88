"""From a name or a folder to a tokenizer."""

from __future__ import annotations

from gptbridge.data.tokenizers.byte import ByteTokenizer
from gptbridge.data.tokenizers.interface import Tokenizer
from gptbridge.errors import BadInput


def load_tokenizer(name_or_folder: str) -> Tokenizer:
    """Return the tokenizer called `byte`, or the one whose files lie in a folder."""
    if name_or_folder == "byte":
        return ByteTokenizer()
    raise BadInput("no such tokenizer", where=name_or_folder, allowed="byte, or a folder")
