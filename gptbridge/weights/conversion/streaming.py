"""The bytes of target tensors, in bounded slabs made a few ahead of the writer by several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.canonical.weight import CanonicalWeight, unchanged
from gptbridge.weights.conversion.target import TargetTensor
from gptbridge.weights.formats import STORAGE_DTYPES, Chunks
from gptbridge.weights.layouts.boxes import Slab, sizes_of, slabs

SLAB_ITEMS = 1 << 18  # 1 MiB of float32
# Each slab of a transposed matrix crosses all of its source, so that a large matrix has larger ones.
_CROSSINGS, _MOST_ITEMS = 8, 1 << 20
_AHEAD = 3  # slabs in work or waiting: what memory is bounded by


class Stream:
    """The bytes of tensors that a writer asks for in the order in which they are given here.

    What a source's file holds as it is goes from there to the writer. The rest is made by `workers`,
    across the borders of tensors, so that they are never idle while the writer writes.
    """

    def __init__(
        self, tensors: Sequence[TargetTensor], weights: Mapping[str, CanonicalWeight], workers: Executor
    ) -> None:
        self._tensors = tensors
        self._weights = weights
        self._workers = workers
        self._parts = self._all_parts()
        self._pending: deque[tuple[int, Future[NDArray[Any]]]] = deque()

    def chunks(self, number: int) -> Chunks:
        """Return the row-major bytes of tensor `number`."""
        unchanged = self._unchanged(number)
        return self._made(number) if unchanged is None else unchanged

    def _unchanged(self, number: int) -> Chunks | None:
        tensor = self._tensors[number]
        return unchanged(self._joined(tensor), tensor.boxes, tensor.axes, tensor.info.dtype)

    def _made(self, number: int) -> Iterator[NDArray[Any]]:
        self._submit()
        while self._pending and self._pending[0][0] == number:
            slab = self._pending.popleft()[1].result()
            self._submit()
            yield slab

    def _submit(self) -> None:
        while len(self._pending) < _AHEAD and (part := next(self._parts, None)):
            number, slab = part
            self._pending.append((number, self._workers.submit(self._make, self._tensors[number], slab)))

    def _all_parts(self) -> Iterator[tuple[int, Slab]]:
        for number, tensor in enumerate(self._tensors):
            if self._unchanged(number) is None:
                items = min(max(SLAB_ITEMS, tensor.info.num_elements // _CROSSINGS), _MOST_ITEMS)
                for slab in slabs(tensor.boxes, tensor.axes, items):
                    yield number, slab

    def _make(self, tensor: TargetTensor, slab: Slab) -> NDArray[Any]:
        dtype, axes, weights = tensor.info.dtype, tensor.axes, self._joined(tensor)
        if len(slab) == 1:
            ((number, box),) = slab.items()
            return weights[number].read(box, axes.parts[number], dtype).reshape(-1)
        sizes = sizes_of(*slab.values())
        result: NDArray[Any] = np.empty(axes.shape(sizes), STORAGE_DTYPES[dtype])
        for number, box in slab.items():
            view = axes.view(result, number, sizes)
            weights[number].read_into(view, box, axes.parts[number], dtype)
        return result.reshape(-1)

    def _joined(self, tensor: TargetTensor) -> list[CanonicalWeight]:
        return [self._weights[name] for name in tensor.canonicals]
