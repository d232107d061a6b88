"""Element types in conversion: float32, float16, bfloat16 and float64, NumPy having no bfloat16."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import UsageError
from gptbridge.weights.formats import STORAGE_DTYPES

FLOATS = ("float32", "float16", "bfloat16", "float64")


def cast(array: NDArray[Any], source: str, target: str) -> NDArray[Any]:
    """Return `array` of element type `source` as `target`, rounding to nearest even; itself when equal.

    Both name a key of STORAGE_DTYPES; bfloat16 travels as uint16. What is beyond `target` becomes infinite.
    """
    if source == target:
        return array
    if source == "bfloat16":
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    with np.errstate(over="ignore"):
        if target == "bfloat16":
            return _to_bfloat16(array.astype(np.float32, copy=False))
        return array.astype(STORAGE_DTYPES[target], copy=False)


def joint_type(tensor: str, dtypes: Mapping[str, str]) -> str:
    """Return the one element type of the weights that `tensor` joins; UsageError where there are several."""
    found = list(dict.fromkeys(dtypes.values()))
    if len(found) > 1:
        raise UsageError(
            f"{tensor} joins {', '.join(f'{name} ({dtype})' for name, dtype in dtypes.items())}",
            hint="Give the element type to write: --dtype",
        )
    return found[0]


def _to_bfloat16(array: NDArray[np.float32]) -> NDArray[np.uint16]:
    bits = np.ascontiguousarray(array).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    quiet = (bits >> np.uint32(16)) | np.uint32(0x40)  # NaN stays NaN
    return np.where(np.isnan(array), quiet, rounded).astype(np.uint16)
