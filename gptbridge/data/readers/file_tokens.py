"""Arrays that lie in a stranger's file, checked against its size, and read: no map of it, no SIGBUS."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.data.tokens import Ids
from gptbridge.errors import BadInput
from gptbridge.weights.formats.source import SourceFile


class FileBytes:
    """A file that stays open, of which ranges are read; BadInput where it has become shorter."""

    def __init__(self, source: SourceFile) -> None:
        self._path = source.path
        self._fd = os.dup(source.fd)

    def __del__(self) -> None:
        os.close(self._fd)

    def read(self, offset: int, count: int, dtype: np.dtype[Any] | str) -> NDArray[Any]:
        """Return `count` numbers from byte `offset` on."""
        numbers = np.empty(count, dtype)
        left = numbers.view(np.uint8)
        while len(left):
            got = os.preadv(self._fd, [left.data], offset)
            if not got:
                raise BadInput("became shorter while it was read", where=self._path)
            left, offset = left[got:], offset + got
        return numbers


class FileTokens:
    """Tokens that lie back to back in a file, read when they are asked for."""

    def __init__(self, file: FileBytes, offset: int, count: int, dtype: str) -> None:
        self._file = file
        self._offset = offset
        self._count = count
        self.dtype: np.dtype[np.integer[Any]] = np.dtype(dtype)

    def __len__(self) -> int:
        """Return the number of tokens."""
        return self._count

    def read(self, start: int, stop: int) -> Ids:
        """Return tokens `start` to `stop` (exclusive)."""
        stop = min(stop, self._count)
        count = max(0, stop - start)
        return self._file.read(self._offset + start * self.dtype.itemsize, count, self.dtype)


def tokens_at(source: SourceFile, offset: int, count: int, dtype: str, what: str) -> FileTokens:
    """Return `count` numbers at byte `offset`, unread; BadInput where the file ends before them."""
    nbytes = count * np.dtype(dtype).itemsize
    if offset < 0 or offset + nbytes > source.size:
        source.refuse(f"ends inside {what}: {source.size} bytes, {offset + nbytes} needed")
    return FileTokens(FileBytes(source), offset, count, dtype)


def array_at(source: SourceFile, offset: int, count: int, dtype: str, what: str) -> NDArray[Any]:
    """Return the numbers of `tokens_at`, read."""
    return tokens_at(source, offset, count, dtype, what).read(0, count)


def open_ids(path: Path, dtype: str, offset: int = 0) -> FileTokens:
    """Return the ids in a file that holds, from byte `offset` on, nothing else of one type."""
    with closing(SourceFile(path)) as source:
        count, rest = divmod(source.size - offset, np.dtype(dtype).itemsize)
        if rest or count < 0:
            source.refuse(f"{source.size - offset} bytes are no whole number of {dtype} tokens")
        return tokens_at(source, offset, count, dtype, "the tokens")
