"""Bytes that a file holds encoded, decoded into temporary files: mapped, they take no memory of a process.

A transposition asks for all rows of a tensor with every slab, and for those of q, k and v in turn.
"""

from __future__ import annotations

import mmap
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import RunFailed

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
