"""Keep freed memory in the process: what a training step frees, the next one asks for again."""

from __future__ import annotations

import ctypes
import sys

# glibc, malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Tell the C library's malloc to keep large freed blocks; return whether it agreed.

    By default glibc returns each block above 32 MiB, and often smaller ones, to the kernel, which
    then zeroes it page by page for the next operator: for the element-wise operators of a model
    on CPU that costs more than their arithmetic. The peak stays what it was; memory is handed
    back at exit. False, and no change, where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20))
    return all(mallopt(option, value) == 1 for option, value in settings)
