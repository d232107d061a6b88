"""What the C library's malloc does with memory that a training step frees."""

from __future__ import annotations

import ctypes
import sys

# glibc, malloc.h
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3

# Blocks above the largest threshold that glibc takes, such as an embedding's gradient, are returned always.
_KEEP = ((_M_MMAP_THRESHOLD, 32 << 20), (_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, 64 << 20))
_RETURN = ((_M_MMAP_THRESHOLD, 256 << 10), (_M_TRIM_THRESHOLD, 128 << 10), (_M_TOP_PAD, 0))


def keep_freed_memory(keep: bool = True) -> bool:
    """Tell malloc to keep freed blocks of up to 32 MiB, or else to return them; return whether it agreed.

    By default glibc returns many of them to the kernel, which then zeroes them page by page for the next
    operator: for the element-wise operators of a model on CPU that costs more than their arithmetic.
    Kept blocks lie in one heap, where a hole is seldom of the size that is asked for next: where
    activations come and go, as under recompute, the process holds up to twice what is in use.
    With blocks returned at once it holds that alone, and steps take a quarter longer.
    False, and no change, where the C library is not glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all(mallopt(option, value) == 1 for option, value in (_KEEP if keep else _RETURN))
