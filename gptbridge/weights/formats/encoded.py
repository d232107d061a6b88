"""A tensor whose bytes a file holds encoded, or scattered in its structure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.formats.segments import Segment, gather_bytes
from gptbridge.weights.formats.tensor import Chunks, TensorInfo, row_major_chunks
from gptbridge.weights.formats.tensor_bytes import TensorBytes
from gptbridge.weights.formats.unpacking import Unpacked

_UNPACKED_BYTES = 1 << 20  # smaller tensors are decoded in memory
_DECODED_BYTES = 1 << 20  # at a time, by each thread


class EncodedBytes(TensorBytes):
    """A tensor in several segments, one after the other, row-major, or column-major if `fortran`.

    A few rows of a row-major one are decoded in memory. Whoever asks for more than that of a large tensor
    is likely to ask again, and gets a view of what was unpacked for all who do.
    """

    __slots__ = ("_fortran", "_segments", "_unpacked")

    def __init__(self, segments: Sequence[Segment], unpacked: Unpacked, *, fortran: bool) -> None:
        self._segments = segments
        self._unpacked = unpacked
        self._fortran = fortran

    def read(self, info: TensorInfo) -> NDArray[Any]:
        """Return the whole tensor in its shape: a copy, or a view of what was unpacked."""
        if info.nbytes < _UNPACKED_BYTES:
            content = gather_bytes(self._segments, 0, info.nbytes)
        else:
            content = self._unpacked.content(self, info.nbytes, lambda: self._slabs(info))
        return content.view(info.storage_dtype).reshape(info.shape, order="F" if self._fortran else "C")

    def rows(self, info: TensorInfo, start: int, stop: int) -> NDArray[Any]:
        """Return rows [start, stop): a copy, or a view of what was unpacked."""
        start, stop, _ = slice(start, stop).indices(info.shape[0])
        stop = max(start, stop)
        if self._fortran or stop - start == info.shape[0]:
            whole: NDArray[Any] = self.read(info)[start:stop]
            return whole
        row_bytes = info.nbytes // max(info.shape[0], 1)
        content = gather_bytes(self._segments, start * row_bytes, stop * row_bytes)
        return content.view(info.storage_dtype).reshape(stop - start, *info.shape[1:])

    def extents(self) -> None:
        """Return None: the bytes do not stand in the file as they are."""
        return

    def chunks(self, info: TensorInfo) -> Chunks:
        """Yield decoded slabs."""
        return row_major_chunks(self.read(info)) if self._fortran else self._slabs(info)

    def _slabs(self, info: TensorInfo) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, info.nbytes, _DECODED_BYTES):
            yield gather_bytes(self._segments, start, min(start + _DECODED_BYTES, info.nbytes))
