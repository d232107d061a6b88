"""Where in the bytes of a stored tensor a box of one of its parts lies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.layouts.boxes import Box
from gptbridge.weights.layouts.stored import StoredAxes


def runs(
    stored: StoredAxes, number: int, box: Box, sizes: Mapping[str, int]
) -> tuple[NDArray[np.int64], int]:
    """Return the item at which each run of a box of part `number` begins, and the items of every run.

    One run after the other, they hold the box in the order of the part's letters.
    """
    tensor = np.empty(stored.shape(sizes), np.int8)  # never touched, so that it takes no memory
    view = stored.view(tensor, number, sizes)
    chosen: NDArray[Any] = view[tuple(slice(*box[letter]) for letter in stored.parts[number].letters)]
    outer, run = chosen.ndim, 1
    while outer and (chosen.shape[outer - 1] == 1 or chosen.strides[outer - 1] == run):
        outer -= 1
        run *= chosen.shape[outer]
    starts = np.array([chosen.ctypes.data - tensor.ctypes.data])
    for length, stride in zip(chosen.shape[:outer], chosen.strides[:outer], strict=True):
        starts = np.add.outer(starts, np.arange(length) * stride).reshape(-1)
    return starts, run
