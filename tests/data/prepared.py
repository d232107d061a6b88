"""Datasets that were prepared, read without the code under test; and text to prepare."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

Documents = list[list[int]]


def read_dataset(prefix: Path) -> Documents:
    """Read .bin and .idx by the letter of Megatron's format."""
    index = prefix.with_name(prefix.name + ".idx").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, sequences, boundaries = struct.unpack_from("<QBQQ", index, 9)
    assert version == 1
    dtype = np.dtype({4: "<i4", 8: "<u2"}[code])
    lengths = np.frombuffer(index, "<i4", sequences, 34)
    offsets = np.frombuffer(index, "<i8", sequences, 34 + 4 * sequences)
    documents = np.frombuffer(index, "<i8", boundaries, 34 + 12 * sequences)
    assert len(index) == 34 + 12 * sequences + 8 * boundaries
    assert documents.tolist() == list(range(sequences + 1))
    tokens = prefix.with_name(prefix.name + ".bin").read_bytes()
    assert len(tokens) == int(lengths.sum()) * dtype.itemsize
    return [
        np.frombuffer(tokens, dtype, length, offset).tolist()
        for length, offset in zip(lengths, offsets, strict=True)
    ]


def facts(prefix: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(prefix.with_name(prefix.name + ".json").read_text())
    return content


def whole(prefix: Path) -> dict[str, bytes]:
    """Return all that was written, by path."""
    return {
        path.relative_to(prefix.parent).as_posix(): path.read_bytes()
        for path in sorted(prefix.parent.rglob("*"))
        if path.is_file()
    }


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)).encode()


def as_bytes(texts: list[str], *, end: bool = False) -> Documents:
    return [[*text.encode(), *([256] if end else [])] for text in texts]


def library_texts() -> list[str]:
    """Return paragraphs of the standard library's source."""
    files = sorted(Path(json.__file__).parent.parent.glob("*.py"))[:40]
    return [piece for file in files for piece in file.read_text().split("\n\n") if piece]
