"""Where a tensor's elements lie in a file, and how they are read: mapped, gathered or decoded."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.tensor import SLAB_BYTES, Chunks, Extent, TensorInfo, row_major_chunks

_VIEW_BYTES = 1 << 20  # written at once; more is slower where free memory is in small pieces


class Block(ABC):
    """The elements of one tensor inside a file; the file's checks are done before a block is made."""

    @abstractmethod
    def rows(self, info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
        """Return rows [start, stop) along the first axis of a tensor that has one."""

    @property
    def whole_only(self) -> bool:
        """Whether a few rows take as long to read as the whole tensor."""
        return False

    @abstractmethod
    def read(self, info: TensorInfo) -> NDArray[Any]:
        """Return the whole tensor in its shape."""

    @abstractmethod
    def extents(self) -> tuple[Extent, ...] | None:
        """Return where the row-major bytes lie, in order; None when the file holds them otherwise."""

    @abstractmethod
    def chunks(self, info: TensorInfo) -> Chunks:
        """Yield the row-major bytes in pieces whose memory does not grow with the tensor."""


class MappedBlock(Block):
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

    def extents(self) -> tuple[Extent, ...] | None:
        """Return one extent when the elements are row-major."""
        if self._strides is not None:
            return None
        return (Extent(self._offset, self._nbytes),) if self._nbytes else ()

    def chunks(self, info: TensorInfo) -> Chunks:
        """Yield views of the map, or copies of a few rows each."""
        if self._strides is not None:
            return row_major_chunks(self.read(info))
        return _views(self._source, self._offset, self._nbytes)


def _views(source: SourceFile, offset: int, nbytes: int) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, nbytes, _VIEW_BYTES):
        yield source.view(offset + start, min(_VIEW_BYTES, nbytes - start))


class Segment(Protocol):
    """`nbytes` consecutive bytes of a tensor."""

    @property
    def nbytes(self) -> int:
        """How many bytes the segment gives."""

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bytes from `start`."""

    def extent(self) -> Extent | None:
        """Return where the bytes lie, or None when the file holds them encoded."""


class RawSegment:
    """Bytes that stand in the file as they are."""

    __slots__ = ("_extent", "_source")

    def __init__(self, source: SourceFile, offset: int, nbytes: int) -> None:
        self._source = source
        self._extent = Extent(offset, nbytes)

    @property
    def nbytes(self) -> int:
        """How many bytes the segment gives."""
        return self._extent.nbytes

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the bytes from `start`."""
        out[:] = np.frombuffer(self._source.data, np.uint8, len(out), self._extent.offset + start)

    def extent(self) -> Extent:
        """Return where the bytes lie."""
        return self._extent

    def view(self, info: TensorInfo, start: int, shape: tuple[int, ...]) -> NDArray[Any]:
        """Return the bytes from `start` as a view of the map, an array of `shape`."""
        return np.ndarray(shape, info.storage_dtype, self._source.data, self._extent.offset + start)

    def views(self) -> Iterator[NDArray[np.uint8]]:
        """Yield all bytes, in views of the map."""
        return _views(self._source, self._extent.offset, self._extent.nbytes)


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

    def extent(self) -> None:
        """Return None: the bytes are not read from the file again."""


class SegmentedBlock(Block):
    """A tensor in several segments, one after the other: `read` copies, `rows` does not where it need not.

    Row-major, or column-major if `fortran`: then even a few rows are read with the whole tensor.
    """

    __slots__ = ("_fortran", "_segments")

    def __init__(self, segments: Sequence[Segment], *, fortran: bool = False) -> None:
        self._segments = segments
        self._fortran = fortran

    @property
    def whole_only(self) -> bool:
        """Whether the rows lie column by column."""
        return self._fortran

    def _bytes(self, start: int, stop: int) -> NDArray[np.uint8]:
        """Return the bytes [start, stop) of the whole tensor."""
        gathered = np.empty(stop - start, np.uint8)
        begin = 0
        for segment in self._segments:
            low, high = max(start, begin), min(stop, begin + segment.nbytes)
            if low < high:
                segment.read_into(low - begin, gathered[low - start : high - start])
            begin += segment.nbytes
        return gathered

    def read(self, info: TensorInfo) -> NDArray[Any]:
        """Return a copy, as large as the tensor."""
        elements = self._bytes(0, info.nbytes).view(info.storage_dtype)
        return elements.reshape(info.shape, order="F" if self._fortran else "C")

    def rows(self, info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
        """Return those rows: a view of the map where one segment holds them as they are, else a copy."""
        start, stop, _ = slice(start, stop).indices(info.shape[0])
        stop = max(start, stop)
        if self._fortran:
            whole: NDArray[Any] = self.read(info)[start:stop]
            return whole
        row_bytes = info.nbytes // max(info.shape[0], 1)
        shape = (stop - start, *info.shape[1:])
        begin, end = start * row_bytes, stop * row_bytes
        passed = 0
        for segment in self._segments:
            inside = passed <= begin < end <= passed + segment.nbytes
            if inside and isinstance(segment, RawSegment):
                return segment.view(info, begin - passed, shape)
            passed += segment.nbytes
        return self._bytes(begin, end).view(info.storage_dtype).reshape(shape)

    def extents(self) -> tuple[Extent, ...] | None:
        """Return an extent for each segment, unless one is encoded or the order is not row-major."""
        if self._fortran:
            return None
        extents = [segment.extent() for segment in self._segments]
        found = tuple(extent for extent in extents if extent is not None)
        return found if len(found) == len(extents) else None

    def chunks(self, info: TensorInfo) -> Chunks:
        """Yield views of the map, or decoded slabs."""
        if self._fortran:
            return row_major_chunks(self.read(info))
        raw = [segment for segment in self._segments if isinstance(segment, RawSegment)]
        if len(raw) < len(self._segments):
            return self._slabs(info)
        return chain.from_iterable(segment.views() for segment in raw)

    def _slabs(self, info: TensorInfo) -> Iterator[NDArray[Any]]:
        for start in range(0, info.nbytes, SLAB_BYTES):
            yield self._bytes(start, min(start + SLAB_BYTES, info.nbytes)).view(info.storage_dtype)
