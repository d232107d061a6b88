"""Where a tensor's elements lie in a file, and how they are read: mapped, gathered or decoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.formats.segments import RawSegment, gather_bytes
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.tensor import Chunks, Extent, TensorInfo, row_major_chunks


@dataclass(frozen=True, slots=True)
class Part:
    """A box of a tensor: a tensor itself, whose first element stands at `offsets` of the whole."""

    offsets: tuple[int, ...]
    info: TensorInfo
    content: TensorBytes

    def rows(self, start: int, stop: int) -> NDArray[Any]:
        """Return rows [start, stop), counted from its own first."""
        return self.content.rows(self.info, start, stop)


class TensorBytes(ABC):
    """The elements of one tensor inside a file; the file's checks are done before a block is made."""

    @abstractmethod
    def rows(self, info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
        """Return rows [start, stop) along the first axis of a tensor that has one."""

    @abstractmethod
    def read(self, info: TensorInfo) -> NDArray[Any]:
        """Return the whole tensor in its shape."""

    @abstractmethod
    def extents(self) -> tuple[Extent, ...] | None:
        """Return where the row-major bytes lie, in order; None when the file holds them otherwise."""

    @abstractmethod
    def chunks(self, info: TensorInfo) -> Chunks:
        """Yield the row-major bytes in pieces whose memory does not grow with the tensor."""

    def drop(self) -> None:
        """Give back what memory its pages take, where it is mapped; they may be read again."""
        return

    def parts(self, info: TensorInfo) -> tuple[Part, ...]:
        """Return the boxes that the tensor is made of: itself, where it is not kept in several."""
        return (Part((0,) * len(info.shape), info, self),)

    def verify(self) -> None:
        """Check the CRC-32s that the file does not declare for itself; BadInput for a damaged part."""
        return


class MappedBytes(TensorBytes):
    """Elements that lie in the file as they do in memory: every read is a view of the map.

    `strides` are in bytes, one for each dimension; None means row-major without gaps.
    """

    __slots__ = ("_nbytes", "_offset", "_source", "_strides")

    def __init__(
        self, source: SourceFile, offset: int, nbytes: int, strides: tuple[int, ...] | None = None
    ) -> None:
        self._source = source
        self._offset = offset
        self._nbytes = nbytes
        self._strides = strides

    def read(self, info: TensorInfo) -> NDArray[Any]:
        """Return a view of the map."""
        if self._nbytes == 0:
            return np.empty(info.shape, info.storage_dtype)
        return np.ndarray(info.shape, info.storage_dtype, self._source.data, self._offset, self._strides)

    def rows(self, info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
        """Return a view of the map."""
        rows: NDArray[Any] = self.read(info)[start:stop]
        return rows

    def drop(self) -> None:
        """Give back the memory of the pages of a row-major tensor."""
        if self._strides is None:
            self._source.drop(self._offset, self._nbytes)

    def extents(self) -> tuple[Extent, ...] | None:
        """Return one extent when the elements are row-major."""
        if self._strides is not None:
            return None
        return (Extent(self._offset, self._nbytes),) if self._nbytes else ()

    def chunks(self, info: TensorInfo) -> Chunks:
        """Yield views of the map, or copies of a few rows each."""
        if self._strides is not None:
            return row_major_chunks(self.read(info))
        return self._source.views(self._offset, self._nbytes)


class SlicedBytes(TensorBytes):
    """A row-major tensor in several segments of the file, one after the other."""

    __slots__ = ("_segments",)

    def __init__(self, segments: Sequence[RawSegment]) -> None:
        self._segments = segments

    def read(self, info: TensorInfo) -> NDArray[Any]:
        """Return a copy, as large as the tensor, unless one segment holds it all."""
        return self._view(info, 0, info.nbytes, info.shape)

    def rows(self, info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
        """Return those rows: a view of the map where one segment holds them, else a copy."""
        start, stop, _ = slice(start, stop).indices(info.shape[0])
        stop = max(start, stop)
        row_bytes = info.nbytes // max(info.shape[0], 1)
        return self._view(info, start * row_bytes, stop * row_bytes, (stop - start, *info.shape[1:]))

    def _view(self, info: TensorInfo, begin: int, end: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return bytes [begin, end) of the tensor as an array of `shape`."""
        passed = 0
        for segment in self._segments:
            if passed <= begin < end <= passed + segment.nbytes:
                return segment.view(info, begin - passed, shape)
            passed += segment.nbytes
        return gather_bytes(self._segments, begin, end).view(info.storage_dtype).reshape(shape)

    def extents(self) -> tuple[Extent, ...]:
        """Return the extent of each segment."""
        return tuple(segment.extent for segment in self._segments)

    def chunks(self, info: TensorInfo) -> Chunks:
        """Yield views of the map."""
        return chain.from_iterable(segment.views() for segment in self._segments)
