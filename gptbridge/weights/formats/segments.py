"""Consecutive bytes of a tensor, of which a format may cut one into several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.tensor import Extent, TensorInfo


class Segment(Protocol):
    """`nbytes` consecutive bytes of a tensor."""

    @property
    def nbytes(self) -> int:
        """How many bytes the segment gives."""

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bytes from `start`."""


class MemorySegment:
    """A few bytes that came with the file's structure."""

    __slots__ = ("_content",)

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def nbytes(self) -> int:
        """How many bytes the segment gives."""
        return len(self._content)

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bytes from `start`."""
        out[:] = np.frombuffer(self._content, np.uint8, len(out), start)


class RawSegment:
    """`nbytes` consecutive bytes of a tensor, as they stand in a file."""

    __slots__ = ("_source", "extent")

    def __init__(self, source: SourceFile, offset: int, nbytes: int) -> None:
        self._source = source
        self.extent = Extent(offset, nbytes)

    @property
    def nbytes(self) -> int:
        """How many bytes the segment gives."""
        return self.extent.nbytes

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bytes from `start`."""
        out[:] = np.frombuffer(self._source.data, np.uint8, len(out), self.extent.offset + start)

    def view(self, info: TensorInfo, start: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the bytes from `start` as a view of the map, an array of `shape`."""
        return np.ndarray(shape, info.storage_dtype, self._source.data, self.extent.offset + start)

    def views(self) -> Iterator[NDArray[np.uint8]]:
        """Yield all bytes, in views of the map."""
        return self._source.views(self.extent.offset, self.extent.nbytes)


def gather_bytes(segments: Sequence[Segment], start: int, stop: int) -> NDArray[np.uint8]:
    """Return bytes [start, stop) of what the segments, one after the other, are."""
    gathered = np.empty(stop - start, np.uint8)
    begin = 0
    for segment in segments:
        low, high = max(start, begin), min(stop, begin + segment.nbytes)
        if low < high:
            segment.read_into(low - begin, gathered[low - start : high - start])
        begin += segment.nbytes
    return gathered
