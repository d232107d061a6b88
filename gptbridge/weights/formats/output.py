"""Output that is complete or absent: a temporary name, streamed bytes, fsync, rename."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
from isal.isal_zlib import crc32
from numpy.typing import NDArray

from gptbridge.errors import RunFailed
from gptbridge.files import sync_folder
from gptbridge.weights.formats.shrinking import refuse_shrunk
from gptbridge.weights.formats.tensor import SLAB_BYTES, Chunks, TensorInfo

Piece: TypeAlias = NDArray[np.uint8]
_PIECES_IN_FLIGHT = 3
# Linux gives a larger write larger pages of its cache, and takes long to find them once memory is in pieces:
# 2 MiB at once took twice the system time of 512 KiB, and 64 KiB a fifth more.
_WRITE_BYTES = 512 << 10
_WRITE_BACK_BYTES = 16 << 20


class OutputFile:
    """A file that is being written from front to back; `position` is where the next byte goes."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._sent = 0  # up to where the kernel was told to start writing to the disk
        self.position = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`."""
        rest = memoryview(data).cast("B")
        while rest:
            try:
                rest = rest[os.write(self._fd, rest[:_WRITE_BYTES]) :]
            except OSError as error:
                if error.errno == errno.EFAULT:  # in a map, behind the new end of its file
                    bytes(rest[:_WRITE_BYTES])
                    refuse_shrunk()
                raise
        self._advance(memoryview(data).nbytes)

    def _advance(self, nbytes: int) -> None:
        """Count what was written, and let the disk begin with it now: fsync at the end waits the less."""
        self.position += nbytes
        if self.position - self._sent >= _WRITE_BACK_BYTES:
            # On Linux the advice starts the writing of pages that are dirty, which makes them no use to drop.
            os.posix_fadvise(self._fd, self._sent, self.position - self._sent, os.POSIX_FADV_DONTNEED)
            self._sent = self.position

    def patch(self, offset: int, data: bytes) -> None:
        """Replace bytes that were written before."""
        os.pwrite(self._fd, data, offset)

    def write_piece(self, piece: Piece, checksum: Checksum | None = None) -> None:
        """Append a piece of a tensor; `checksum` takes it in beside the writing."""
        if checksum is not None:
            checksum.add(piece)
        self.write(piece.data)

    def write_tensor(self, info: TensorInfo, chunks: Chunks, checksum: Checksum | None = None) -> None:
        """Append a tensor's bytes; ValueError unless they are just `info.nbytes` bytes."""
        stream = TensorStream(info, chunks)
        for piece in stream.take(info.nbytes):
            self.write_piece(piece, checksum)
        stream.finish()


class TensorStream:
    """The bytes of one tensor, taken in pieces of bounded size, whatever chunks they come in."""

    def __init__(self, info: TensorInfo, chunks: Chunks) -> None:
        self._info = info
        self._pieces = (piece for chunk in chunks for piece in _pieces(chunk))
        self._rest: Piece | None = None

    def take(self, nbytes: int) -> Iterator[Piece]:
        """Yield the next `nbytes` bytes; ValueError when the tensor's chunks end before."""
        while nbytes:
            piece = self._rest if self._rest is not None else next(self._pieces, None)
            if piece is None:
                raise ValueError(f"{self._info.name}: the chunks are {nbytes} bytes short")
            piece, self._rest = _split(piece, nbytes)
            nbytes -= piece.nbytes
            yield piece

    def finish(self) -> None:
        """Raise ValueError when there are bytes that were not taken."""
        if self._rest is not None or next(self._pieces, None) is not None:
            raise ValueError(f"{self._info.name}: the chunks hold more than {self._info.nbytes} bytes")


def _split(piece: Piece, nbytes: int) -> tuple[Piece, Piece | None]:
    if piece.nbytes <= nbytes:
        return piece, None
    return piece[:nbytes], piece[nbytes:]


def _pieces(chunk: NDArray[Any]) -> Iterator[Piece]:
    """Cut a chunk so that a checksum of one piece can run beside the writing of it."""
    raw = np.ascontiguousarray(chunk).reshape(-1).view(np.uint8)
    for start in range(0, len(raw), SLAB_BYTES):
        yield raw[start : start + SLAB_BYTES]


class Checksum:
    """A running CRC-32, computed in a thread beside the writing of the same bytes. A context manager."""

    def __init__(self) -> None:
        self._value = 0
        self._pool = ThreadPoolExecutor(max_workers=1)
        self._pending: deque[Future[None]] = deque()

    def add(self, piece: Piece) -> None:
        """Take in the next bytes, in order; waits while too many pieces are in flight."""
        self._wait(_PIECES_IN_FLIGHT - 1)
        self._pending.append(self._pool.submit(self._add, piece))

    def take(self) -> int:
        """Return the CRC-32 of what was added, and start again from nothing."""
        self._wait()
        value, self._value = self._value, 0
        return value

    def add_bytes(self, data: bytes) -> None:
        """Take in a few bytes at once."""
        self._wait()
        self._value = crc32(data, self._value)

    def _wait(self, in_flight: int = 0) -> None:
        while len(self._pending) > in_flight:
            self._pending.popleft().result()

    def _add(self, piece: Piece) -> None:
        self._value = crc32(piece.data, self._value)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)


@contextmanager
def new_file(path: Path) -> Iterator[OutputFile]:
    """Give a file to write that takes the name `path` when the block ends well, and vanishes otherwise.

    The bytes are on the disk before the rename. A link at `path` is replaced, never followed. RunFailed
    when the system refuses (no space, no permission).
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with suppress(FileNotFoundError):
            temporary.unlink()
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            yield OutputFile(fd)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunFailed(f"cannot be written: {error.strerror}", where=path) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
