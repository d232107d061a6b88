"""Element types in conversion: float32, float16, bfloat16 and float64, NumPy having no bfloat16."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.formats import STORAGE_DTYPES

FLOATS = ("float32", "float16", "bfloat16", "float64")


def cast(array: NDArray[Any], source: str, target: str) -> NDArray[Any]:
    """Return `array` of element type `source` as `target`, rounding to nearest even; itself when equal.

    Both name a key of STORAGE_DTYPES; bfloat16 travels as uint16.
    """
    if source == target:
        return array
    if source == "bfloat16":
        wide = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
        return wide.astype(STORAGE_DTYPES[target], copy=False)
    if target == "bfloat16":
        return _to_bfloat16(array.astype(np.float32, copy=False))
    with np.errstate(over="ignore"):  # float16 overflows to infinity, as every framework does
        return array.astype(STORAGE_DTYPES[target])


def _to_bfloat16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)  # NaN stays NaN
    return np.where(np.isnan(array), quiet, rounded).astype(np.uint16)
