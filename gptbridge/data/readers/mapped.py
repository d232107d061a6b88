"""Arrays that lie in a stranger's file, memory-mapped and checked against its size."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.formats.source import SourceFile


def array_at(source: SourceFile, offset: int, count: int, dtype: str, what: str) -> NDArray[Any]:
    """Return a view of `count` numbers at byte `offset`; BadInput where the file ends before them."""
    nbytes = count * np.dtype(dtype).itemsize
    if offset < 0 or offset + nbytes > source.size:
        source.refuse(f"ends inside {what}: {source.size} bytes, {offset + nbytes} needed")
    return np.frombuffer(source.data, dtype, count, offset)


def map_ids(path: Path, dtype: str) -> NDArray[np.integer[Any]]:
    """Return a view of a file that holds nothing but token ids of one type.

    The view keeps the map, and needs no open file.
    """
    with closing(SourceFile(path)) as source:
        count, rest = divmod(source.size, np.dtype(dtype).itemsize)
        if rest:
            source.refuse(f"{source.size} bytes are no whole number of {dtype} tokens")
        return array_at(source, 0, count, dtype, "the tokens")
