"""Bytes that a protocol 2 pickle holds as UTF-8 text: 0..127 in one byte, 128..255 in two."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.formats.source import SourceFile

_STEP = 1 << 16
_CONTINUATION, _LEAST_LEAD, _LEAD, _HIGH_LEAD = 0x80, 0xC0, 0xC2, 0xC3


class Latin1Segment:
    """`encoded` bytes at `offset`, decoded a part at a time.

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


def _is_lead(text: NDArray[np.uint8]) -> NDArray[np.bool_]:
    lead: NDArray[np.bool_] = (text & 0xFE) == _LEAD
    return lead
