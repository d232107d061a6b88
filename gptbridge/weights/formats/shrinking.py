"""A mapped file that becomes shorter while it is read: an error with its name in place of SIGBUS.

The kernel sends SIGBUS to a thread that touches a page behind the file's new end. Here zeros take the place
of all that is gone, and whoever has read from a map asks `refuse_shrunk` before using what came out. Only
Linux's structures are known; elsewhere, and for any other memory, the signal ends the process as ever.
"""

from __future__ import annotations

import ctypes
import mmap
import signal
import sys
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np

from gptbridge.errors import BadInput

_SA_SIGINFO = 4
_ADDRESS_OFFSET = 16  # of si_addr in siginfo_t
_MAP_FIXED = 0x10
_Handler = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


class _Action(ctypes.Structure):
    """struct sigaction."""

    _fields_ = (
        ("handler", ctypes.c_void_p),
        ("mask", ctypes.c_ulong * 16),
        ("flags", ctypes.c_int),
        ("restorer", ctypes.c_void_p),
    )


_maps: WeakKeyDictionary[mmap.mmap, tuple[int, int, Path]] = WeakKeyDictionary()  # first address, end, file
_shrunk: list[Path] = []
_before = _Action()
_libc = ctypes.CDLL(None)
_libc.mmap.restype = ctypes.c_void_p


def guard(memory: mmap.mmap, path: Path) -> None:
    """Watch over a map of `path` for as long as it lives."""
    if sys.platform != "linux":
        return
    start = np.frombuffer(memory, np.uint8).ctypes.data
    _maps[memory] = start, start + len(memory), path
    replaced = _Action()
    _libc.sigaction(signal.SIGBUS, ctypes.byref(_ours), ctypes.byref(replaced))
    if replaced.handler != _ours.handler:
        ctypes.memmove(ctypes.byref(_before), ctypes.byref(replaced), ctypes.sizeof(_Action))


def refuse_shrunk() -> None:
    """Raise BadInput if a file became shorter than what was read of it."""
    if _shrunk:
        path = _shrunk[0]
        forget_shrunk(path)  # it may have been met on several of its pages
        raise BadInput("became shorter while it was read", where=path)


def forget_shrunk(path: Path) -> None:
    """Let go of what nobody reads any more: a thread may have gone on when the others had given up."""
    _shrunk[:] = [shrunk for shrunk in _shrunk if shrunk != path]


def _fill(number: int, info: int, context: int) -> None:
    """Put zeros where the file has no more bytes; where that is no file of ours, step aside."""
    address = ctypes.c_void_p.from_address(info + _ADDRESS_OFFSET).value or 0
    for start, end, path in list(_maps.values()):
        if start <= address < end:
            page = address // mmap.PAGESIZE * mmap.PAGESIZE
            flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_FIXED
            length = ctypes.c_size_t(end - page)
            if _libc.mmap(ctypes.c_void_p(page), length, mmap.PROT_READ, flags, -1, ctypes.c_long(0)) == page:
                _shrunk.append(path)
                return
    _libc.sigaction(number, ctypes.byref(_before), None)


_filling = _Handler(_fill)
_ours = _Action(ctypes.cast(_filling, ctypes.c_void_p).value, flags=_SA_SIGINFO)
