"""Arrays and a few words between two processes of one machine, through a socket: nothing that runs code."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
_LENGTH = 8  # bytes that say how long the words are
_IDLE_SECONDS = 0.1


def connected(path: Path) -> Line:
    """Return a line to the process that listens at `path`."""
    end = socket.socket(socket.AF_UNIX)
    end.connect(str(path))
    return Line(end)


class Listener:
    """Listens at `path`; `idle` is called again and again while its lines wait, and may raise."""

    def __init__(self, path: Path, idle: Callable[[], None]) -> None:
        self._socket, self._idle = socket.socket(socket.AF_UNIX), idle
        self._socket.bind(str(path))
        self._socket.listen()
        self._socket.settimeout(_IDLE_SECONDS)

    def accept(self) -> Line:
        """Return a line to the next process that comes."""
        while True:
            try:
                return Line(self._socket.accept()[0], self._idle)
            except TimeoutError:
                self._idle()

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


class Line:
    """One end of a line. EOFError or OSError where the other end has gone."""

    def __init__(self, end: socket.socket, idle: Callable[[], None] | None = None) -> None:
        self._end, self._idle = end, idle or (lambda: None)
        end.settimeout(_IDLE_SECONDS if idle else None)

    def send(self, words: dict[str, Any], *arrays: Array | None) -> None:
        """Send words that JSON knows, and arrays."""
        packed = [None if array is None else np.ascontiguousarray(array) for array in arrays]
        shapes = [None if array is None else (array.dtype.str, array.shape) for array in packed]
        head = json.dumps([words, shapes]).encode()
        self._write(len(head).to_bytes(_LENGTH) + head)
        for array in packed:
            if array is not None:
                self._write(array.reshape(-1).view(np.uint8))

    def receive(self) -> tuple[dict[str, Any], list[Array | None]]:
        """Return what the other end has sent."""
        length = np.empty(_LENGTH, np.uint8)
        self._read(length)
        head = np.empty(int.from_bytes(length.tobytes()), np.uint8)
        self._read(head)
        words, shapes = json.loads(head.tobytes())
        arrays = [None if shape is None else np.empty(shape[1], shape[0]) for shape in shapes]
        for array in arrays:
            if array is not None:
                self._read(array.reshape(-1).view(np.uint8))
        return words, arrays

    def close(self) -> None:
        """Let the other end know that nothing comes any more."""
        self._end.close()

    def _write(self, content: bytes | NDArray[np.uint8]) -> None:
        left = memoryview(content)  # type: ignore[arg-type]
        while len(left):
            try:
                left = left[self._end.send(left) :]
            except TimeoutError:
                self._idle()

    def _read(self, content: NDArray[np.uint8]) -> None:
        left = memoryview(content)  # type: ignore[arg-type]
        while len(left):
            try:
                count = self._end.recv_into(left)
            except TimeoutError:
                self._idle()
                continue
            if not count:
                raise EOFError
            left = left[count:]
