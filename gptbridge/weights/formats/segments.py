"""Consecutive bytes of a tensor, of which a format may cut one into several."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.tensor import Extent, TensorInfo

# Of UTF-8 that holds bytes as Latin-1 text.
_STEP = 1 << 16
_CONTINUATION, _LEAST_LEAD, _LEAD, _HIGH_LEAD = 0x80, 0xC0, 0xC2, 0xC3


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


class Latin1Segment:
    """Bytes that a pickle of protocol 2 holds as UTF-8 text, 0..127 in one byte and 128..255 in two.

    They take `encoded` bytes at `offset`, and are decoded a part at a time.
    Opening reads the text once, checks it, and remembers how many bytes each step of it gives.
    """

    __slots__ = ("_encoded", "_offset", "_source", "_starts")

    def __init__(self, source: SourceFile, offset: int, encoded: int) -> None:
        """Raise ValueError when the text holds anything above U+00FF or is no UTF-8."""
        self._source = source
        self._offset = offset
        self._encoded = encoded
        counts = [self._count(step) for step in range(0, encoded, _STEP)]
        # _starts[n] is the number of decoded bytes before step n.
        self._starts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    def _text(self, start: int) -> NDArray[np.uint8]:
        """Return the encoded bytes of the step that begins at `start`."""
        size = min(_STEP, self._encoded - start)
        return np.frombuffer(self._source.data, np.uint8, size, self._offset + start)

    def _count(self, start: int) -> int:
        text = self._text(start)
        if ((text >= _LEAST_LEAD) & ~_is_lead(text)).any():
            raise ValueError("text above U+00FF")
        before = self._text(start - 1)[0] if start else 0
        follows_lead = _is_lead(np.concatenate([[np.uint8(before)], text[:-1]]))
        continuation = (text & 0xC0) == _CONTINUATION
        last = start + len(text) == self._encoded
        if (follows_lead != continuation).any() or (last and _is_lead(text[-1:]).any()):
            raise ValueError("not the UTF-8 of Latin-1 text")
        # A character counts where it ends, so that a step decodes from its own bytes and one before.
        return len(text) - int(np.count_nonzero(_is_lead(text)))

    @property
    def nbytes(self) -> int:
        """How many bytes the text stands for."""
        return int(self._starts[-1])

    def read_into(self, start: int, out: NDArray[np.uint8]) -> None:
        """Fill `out` with the decoded bytes from `start`."""
        step = int(np.searchsorted(self._starts, start, side="right")) - 1
        done = 0
        while done < len(out):
            decoded = self._decode(step * _STEP)[start + done - int(self._starts[step]) :]
            count = min(len(decoded), len(out) - done)
            out[done : done + count] = decoded[:count]
            done += count
            step += 1

    def _decode(self, start: int) -> NDArray[np.uint8]:
        text = self._text(start)
        before = self._text(start - 1)[:1] if start else np.zeros(1, np.uint8)
        # After the lead 0xC2 a continuation byte is what it stands for, after 0xC3 it is 0x40 less.
        high = np.concatenate([before, text[:-1]]) == _HIGH_LEAD
        # By index: a mask without any order takes NumPy a fifth longer.
        ends: NDArray[np.uint8] = (text + (high.view(np.uint8) << 6)).take(np.flatnonzero(text < _LEAST_LEAD))
        return ends


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


def _is_lead(text: NDArray[np.uint8]) -> NDArray[np.bool_]:
    lead: NDArray[np.bool_] = (text & 0xFE) == _LEAD
    return lead
