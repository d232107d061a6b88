"""nanoGPT's raw .bin: uint16 tokens and nothing else. Each file is one document."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np

from gptbridge.data.readers.mapped import map_ids
from gptbridge.data.tokens import FlatTokens, TokenDataset
from gptbridge.errors import BadInput
from gptbridge.weights.formats.source import SourceFile

# A raw file has no mark of its own, so it must not bear another's: four bytes or more, which is
# more than chance puts at the begin of a text.
_OTHERS = {
    b"PK\x03\x04": "a zip archive",
    b"\x93NUMPY": "a NumPy array",
    b"MMIDIDX": "a Megatron index",
    b"SQLite format 3": "an SQLite database",
    b"\x80\x02\x8a\x0a": "a pickle",
    b"\x28\xb5\x2f\xfd": "Zstandard data",
    b"version https://": "a Git LFS pointer",
    b"<!DOCTYPE": "HTML",
    b"<!doctype": "HTML",
    b"<html": "HTML",
}


def open_nanogpt(prefix: Path) -> TokenDataset:
    """Open PREFIX.bin as uint16 tokens; BadInput where it is visibly something else."""
    path = prefix.with_name(f"{prefix.name}.bin")
    ids = map_ids(path, "<u2")
    if other := _other(ids[:16].tobytes()):
        raise BadInput(f"is {other}, not raw uint16 tokens", where=path)
    if prefix.with_name(f"{prefix.name}.tokenizer").exists():
        raise BadInput(
            "is missing, and `gptbridge data prepare` wrote one",
            where=prefix.with_name(f"{prefix.name}.idx"),
            hint="Copy it from where the dataset was prepared, or prepare the text again",
        )
    return TokenDataset("nanogpt", str(path), FlatTokens(ids), np.array([0, len(ids)], np.int64))


def may_hold_tokens(path: Path) -> bool:
    """Tell whether the file at `path` bears no other format's mark; False where it cannot be read."""
    try:
        with closing(SourceFile(path)) as source:
            return _other(source.data[:32]) is None
    except BadInput:
        return False


def _other(start: bytes) -> str | None:
    """Return what a file that begins with `start` visibly is instead of raw tokens."""
    return next((name for magic, name in _OTHERS.items() if start.startswith(magic)), None)
