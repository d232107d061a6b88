"""A tensor whose bytes a file holds encoded, or scattered in its structure.

Those of a large one are decoded into temporary files: mapped, they take no memory of a process. For a
transposition asks for all rows of a tensor with every slab, and for those of q, k and v in turn.
"""

from __future__ import annotations

import mmap
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import RunFailed
from gptbridge.weights.formats.segments import Segment, gather_bytes
from gptbridge.weights.formats.tensor import Chunks, TensorInfo, row_major_chunks
from gptbridge.weights.formats.tensor_bytes import TensorBytes

_UNPACKED_BYTES = 1 << 20  # smaller tensors are decoded in memory
_DECODED_BYTES = 1 << 20  # at a time, by each thread
_MOST_BYTES = 2 << 30  # on the disk; q, k and v of a layer with 12,288 hidden units take 1.8e9


@dataclass
class _Entry:
    nbytes: int
    lock: Lock = field(default_factory=Lock)
    content: NDArray[np.uint8] | None = None


class Unpacked:
    """What was decoded of one file, of which the last used 2 GiB, or the last one, are kept."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._entries: OrderedDict[object, _Entry] = OrderedDict()

    def content(
        self, key: object, nbytes: int, decode: Callable[[], Iterable[NDArray[np.uint8]]]
    ) -> NDArray[np.uint8]:
        """Return the `nbytes` bytes that `decode` yields, decoded at the first call with `key`."""
        entry = self._entry(key, nbytes)
        with entry.lock:
            if entry.content is None:
                entry.content = _mapped(nbytes, decode())
            return entry.content

    def _entry(self, key: object, nbytes: int) -> _Entry:
        with self._lock:
            entry = self._entries.setdefault(key, _Entry(nbytes))
            self._entries.move_to_end(key)
            while len(self._entries) > 1 and sum(e.nbytes for e in self._entries.values()) > _MOST_BYTES:
                self._entries.popitem(last=False)  # whoever still reads it keeps its map
            return entry


def _mapped(nbytes: int, parts: Iterable[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    try:
        with tempfile.TemporaryFile(prefix="gptbridge-") as file:
            for part in parts:
                file.write(part.data)
            file.flush()
            return np.frombuffer(mmap.mmap(file.fileno(), nbytes, access=mmap.ACCESS_READ), np.uint8)
    except OSError as error:
        raise RunFailed(
            f"a tensor of {nbytes:,} bytes cannot be unpacked here: {error.strerror}",
            where=tempfile.gettempdir(),
            hint="Set TMPDIR to a folder with room",
        ) from error


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
