"""The bytes of target tensors, in bounded slabs made a few ahead of the writer by several threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.canonical.weight import CanonicalWeight, unchanged
from gptbridge.weights.conversion.target import TargetTensor
from gptbridge.weights.formats import STORAGE_DTYPES, Chunks
from gptbridge.weights.layouts.boxes import Slab, sizes_of, slabs, volume

SLAB_ITEMS = 1 << 18  # 1 MiB of float32
# Each slab of a transposed matrix crosses all of its source, so that a large matrix has larger ones. Numbers
# that are made into others take memory on the way.
_CROSSINGS, _MOST_CAST_ITEMS = 4, 1 << 20
_MOST_ITEMS = 2 << 20  # of a slab, and of all in work or waiting: what memory is bounded by


@dataclass(frozen=True, slots=True)
class _Part:
    """A slab of the tensor `number`; `cast` where its numbers are not just copied."""

    number: int
    slab: Slab
    items: int
    cast: bool


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
        self._next = next(self._parts, None)
        self._ahead = 0  # items in work or waiting
        self._pending: deque[tuple[_Part, Future[NDArray[Any]]]] = deque()

    def chunks(self, number: int) -> Chunks:
        """Return the row-major bytes of tensor `number`."""
        unchanged = self._unchanged(number)
        return self._made(number) if unchanged is None else unchanged

    def _unchanged(self, number: int) -> Chunks | None:
        tensor = self._tensors[number]
        return unchanged(self._joined(tensor), tensor.boxes, tensor.axes, tensor.info.dtype)

    def _made(self, number: int) -> Iterator[NDArray[Any]]:
        self._submit()
        while self._pending and self._pending[0][0].number == number:
            part, made = self._pending.popleft()
            slab = made.result()
            self._ahead -= part.items
            self._submit()
            yield slab

    def _submit(self) -> None:
        while (part := self._next) and (not self._pending or self._ahead + part.items <= _MOST_ITEMS):
            self._pending.append((part, self._begin(part)))
            self._ahead += part.items
            self._next = next(self._parts, None)

    def _all_parts(self) -> Iterator[_Part]:
        for number, tensor in enumerate(self._tensors):
            if self._unchanged(number) is not None:
                continue
            cast = not all(weight.copied(tensor.info.dtype) for weight in self._joined(tensor))
            most = _MOST_CAST_ITEMS if cast else _MOST_ITEMS
            items = min(max(SLAB_ITEMS, tensor.info.num_elements // _CROSSINGS), most)
            for slab in slabs(tensor.boxes, tensor.axes, items):
                yield _Part(number, slab, sum(map(volume, slab.values())), cast)

    def _begin(self, part: _Part) -> Future[NDArray[Any]]:
        """Have a worker make the numbers of a slab, in the order of its tensor's bytes."""
        tensor = self._tensors[part.number]
        if part.cast and len(part.slab) == 1:
            return self._workers.submit(self._read, tensor, part.slab)
        # Allocated here: what threads free stays with each of them.
        result = np.empty(part.items, STORAGE_DTYPES[tensor.info.dtype])
        return self._workers.submit(self._fill, result, tensor, part.slab)

    def _read(self, tensor: TargetTensor, slab: Slab) -> NDArray[Any]:
        ((number, box),) = slab.items()
        weight = self._joined(tensor)[number]
        return weight.read(box, tensor.axes.parts[number], tensor.info.dtype).reshape(-1)

    def _fill(self, result: NDArray[Any], tensor: TargetTensor, slab: Slab) -> NDArray[Any]:
        axes, weights, sizes = tensor.axes, self._joined(tensor), sizes_of(*slab.values())
        held = replace(axes, parts=tuple(axes.parts[number] for number in slab))
        shaped = result.reshape(held.shape(sizes))
        for place, (number, box) in enumerate(slab.items()):
            view = held.view(shaped, place, sizes)
            weights[number].read_into(view, box, axes.parts[number], tensor.info.dtype)
        return result

    def _joined(self, tensor: TargetTensor) -> list[CanonicalWeight]:
        return [self._weights[name] for name in tensor.canonicals]
