"""Few shapes for many: every new shape is compiled, so odd ones are padded to a usual one."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def usual_size(size: int, *usual: int, smallest: int = 16) -> int:
    """Return the smallest power of two from `smallest` on, or number of `usual`, that holds `size`."""
    power = max(smallest, 1 << (size - 1).bit_length())
    return min(n for n in (power, *usual) if n >= size)


def pad(array: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return `array` of integers, or of float32, with zeros appended along each axis up to `shape`."""
    widths = [(0, target - size) for size, target in zip(array.shape, shape, strict=True)]
    return np.pad(array if array.dtype == np.float32 else np.asarray(array, np.int32), widths)
