"""Megatron's indexed dataset, version 1: PREFIX.bin holds tokens back to back, PREFIX.idx where each begins.

The .idx, little-endian: magic, version (uint64), type code (uint8), number of sequences and of
document boundaries (uint64 each), then the sequences' lengths (int32) and byte offsets (int64) and
the boundaries (int64). Here a sequence is a document. Source: Megatron-LM,
megatron/core/datasets/indexed_dataset.py.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
DTYPE_CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}

_ROWS = 1 << 18  # handled at a time, so that memory does not grow with the dataset


def dtype_for(vocab_size: int) -> str:
    """Return the type Megatron stores ids of this vocabulary in: uint16 below 65500, else int32."""
    return "uint16" if vocab_size < 65500 else "int32"


def write_index(path: Path, dtype: str, lengths: Path) -> None:
    """Write the .idx of documents whose lengths (int32, in tokens) lie in the file `lengths`."""
    count = lengths.stat().st_size // 4
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<QBQQ", VERSION, DTYPE_CODES[dtype], count, count + 1))
        for rows in _rows(lengths):
            file.write(rows.tobytes())
        offset = 0
        for rows in _rows(lengths):
            ends = offset + np.cumsum(rows, dtype=np.int64) * np.dtype(dtype).itemsize
            file.write(np.concatenate([[offset], ends[:-1]]).astype("<i8").tobytes())
            offset = int(ends[-1])
        for start in range(0, count + 1, _ROWS):
            file.write(np.arange(start, min(start + _ROWS, count + 1), dtype="<i8").tobytes())
        file.flush()
        os.fsync(file.fileno())


def _rows(lengths: Path) -> Iterator[NDArray[np.int32]]:
    with lengths.open("rb") as file:
        while len(rows := np.fromfile(file, "<i4", _ROWS)):
            yield rows
