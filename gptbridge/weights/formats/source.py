"""A stranger's file, opened without blocking, checked to be a regular file, and mapped read-only."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import stat
import sys
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import NoReturn, Self

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from gptbridge.errors import BadInput, printable
from gptbridge.weights.formats.shrinking import forget_shrunk, guard

_CHECKSUM_STEP = 256 << 10
_VIEW_BYTES = 512 << 10
_WINDOW_BYTES = 4 << 20
_SPARE_FILES = 256
# Linux's madvise, by ctypes: mmap's own method would keep other threads from running while a disk is read.
_madvise = ctypes.CDLL(None).madvise if sys.platform == "linux" else None
_MADV_POPULATE_READ = 22


def allow_open_files(count: int) -> None:
    """Let this process have as many files open as those of very many ranks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + _SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


class SourceFile:
    """An open regular file: `fd`, `size` and `data`, its bytes as a read-only memory map.

    A part of one has the bytes of its range alone; only the whole is closed. Links are followed. A FIFO,
    device, folder, dangling link or empty file is refused as BadInput.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = 0  # of a part, in the file
        try:
            # O_NONBLOCK: opening a FIFO that nobody writes to must not wait for a writer.
            self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise BadInput(f"cannot be opened: {reason}", where=path) from error
        try:
            self.size = self._checked_size()
            self.data = memoryview(self._mapped())
        except BaseException:
            os.close(self.fd)
            raise

    def _checked_size(self) -> int:
        status = os.fstat(self.fd)
        if not stat.S_ISREG(status.st_mode):
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a special file")
            self.refuse(f"is {kind}", allowed="a regular file")
        if status.st_size == 0:
            self.refuse("is empty")
        return status.st_size

    def _mapped(self) -> mmap.mmap:
        try:
            memory = mmap.mmap(self.fd, self.size, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:  # ValueError: it is shorter already
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise BadInput(f"cannot be mapped: {reason}", where=self.path) from error
        guard(memory, self.path)
        return memory

    def part(self, offset: int, nbytes: int) -> Self:
        """Return a range that lies inside the file as a file of its own."""
        part = copy(self)
        part._start += offset
        part.size = nbytes
        part.data = self.data[offset : offset + nbytes]
        return part

    def refuse(self, problem: str, *, tensor: object = None, allowed: str | None = None) -> NoReturn:
        """Raise BadInput that names this file, the tensor if one is to blame, and the reason."""
        if tensor is not None:
            problem = f"tensor {printable(tensor)!r}: {problem}"
        raise BadInput(problem, where=self.path, allowed=allowed)

    def bytes_at(self, offset: int, nbytes: int, what: str) -> bytes:
        """Return `nbytes` bytes from `offset`; a range that leaves the file is refused, naming `what`."""
        if offset < 0 or nbytes < 0 or offset + nbytes > self.size:
            self.refuse(f"ends inside {what}")
        return bytes(self.data[offset : offset + nbytes])

    def begins(self, signature: bytes, offset: int = 0) -> bool:
        """Tell whether `signature` stands at `offset`."""
        return bytes(self.data[offset : offset + len(signature)]) == signature

    def find(self, wanted: bytes, start: int, stop: int) -> int:
        """Return where `wanted` begins in a short range, or -1."""
        found = bytes(self.data[start:stop]).find(wanted)
        return found if found < 0 else start + found

    def views(self, offset: int, nbytes: int) -> Iterator[NDArray[np.uint8]]:
        """Yield a range that lies inside the file, in views of the map that are good to write."""
        for start in range(0, nbytes, _WINDOW_BYTES):
            window = self._window(offset + start, min(_WINDOW_BYTES, nbytes - start))
            for first in range(0, len(window), _VIEW_BYTES):
                yield window[first : first + _VIEW_BYTES]
            self.drop(offset + start, len(window))

    def drop(self, offset: int, nbytes: int) -> None:
        """Give back the memory of a range that lies inside the file; it may be read again."""
        self._advise(np.frombuffer(self.data, np.uint8, nbytes, offset), mmap.MADV_DONTNEED)

    def _window(self, offset: int, nbytes: int) -> NDArray[np.uint8]:
        """Return a view whose pages are mapped already: faults for a few each cost a tenth of the copying."""
        array = np.frombuffer(self.data, np.uint8, nbytes, offset)
        self._advise(array, _MADV_POPULATE_READ)  # fails before Linux 5.14: pages are mapped when touched
        return array

    @staticmethod
    def _advise(array: NDArray[np.uint8], advice: int) -> None:
        if _madvise is not None:
            start = array.ctypes.data // mmap.PAGESIZE * mmap.PAGESIZE
            end = array.ctypes.data + array.nbytes
            _madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), advice)

    def crc32(self, offset: int, nbytes: int) -> int:
        """Return the CRC-32 of a range that lies inside the file, in constant memory."""
        buffer = memoryview(bytearray(min(_CHECKSUM_STEP, nbytes)))
        checksum, offset, end = 0, self._start + offset, self._start + offset + nbytes
        while offset < end:
            count = os.preadv(self.fd, [buffer[: end - offset]], offset)
            if count == 0:
                self.refuse("became shorter while it was read")
            checksum = crc32(buffer[:count], checksum)
            offset += count
        return checksum

    def close(self) -> None:
        """Close the file. The map goes with its last user, for an array does not keep it from closing."""
        os.close(self.fd)
        forget_shrunk(self.path)


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFSOCK: "a socket",
}
