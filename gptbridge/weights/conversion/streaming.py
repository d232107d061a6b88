"""The bytes of a target tensor, in bounded slabs, from the pieces of its canonical weight."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from typing import Any

from numpy.typing import NDArray

from gptbridge.weights.conversion.canonical_weight import CanonicalWeight
from gptbridge.weights.formats import Chunks
from gptbridge.weights.layouts.axes import Axes
from gptbridge.weights.layouts.boxes import Box, slabs

SLAB_ITEMS = 1 << 20  # 4 MiB of float32
_AHEAD = 4  # slabs in work or waiting: what memory is bounded by


def target_bytes(weight: CanonicalWeight, box: Box, axes: Axes, dtype: str, workers: Executor) -> Chunks:
    """Return the row-major bytes of `box` of a weight, stored as `axes` in `dtype`.

    The file ranges of the source where its bytes can go unchanged, else arrays of bounded size, made by
    `workers` a few ahead of the writer.
    """
    unchanged = weight.unchanged(box, axes, dtype)
    return _slabs(weight, box, axes, dtype, workers) if unchanged is None else unchanged


def _slabs(
    weight: CanonicalWeight, box: Box, axes: Axes, dtype: str, workers: Executor
) -> Iterator[NDArray[Any]]:
    def make(part: Box) -> NDArray[Any]:
        return weight.read(part, axes, dtype).reshape(-1)

    pending: deque[Future[NDArray[Any]]] = deque()
    for part in slabs(box, axes, SLAB_ITEMS):
        pending.append(workers.submit(make, part))
        if len(pending) == _AHEAD:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
