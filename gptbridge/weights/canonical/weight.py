"""One canonical weight of an open checkpoint: the pieces it lies in, read as any layout."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BadInput, printable
from gptbridge.weights.architecture import weight_axes
from gptbridge.weights.canonical.casting import cast
from gptbridge.weights.formats import STORAGE_DTYPES, Chunks, WeightFile
from gptbridge.weights.formats.finite import NO_WEIGHTS, all_finite, finite_chunks
from gptbridge.weights.formats.shrinking import refuse_shrunk
from gptbridge.weights.layouts.axes import Axes
from gptbridge.weights.layouts.boxes import Box, Piece, gather, gather_into
from gptbridge.weights.layouts.stored import StoredAxes

Delta = Callable[[Box, Axes], NDArray[np.float32]]  # what is added to a box of a weight, stored as the axes
_WIDER = "Convert with --dtype bfloat16, float32 or float64, whichever reaches further"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor of some file that is just these boxes of these weights."""

    names: tuple[str, ...]
    boxes: tuple[Box, ...]
    axes: StoredAxes
    file: WeightFile
    tensor: str

    def chunks(self) -> Chunks:
        """Return its bytes, in pieces; BadInput before one that ends a number that is none."""
        return finite_chunks(self.file, self.tensor)


@dataclass(frozen=True, slots=True)
class CanonicalWeight:
    """Where the parts of one weight are, their element type, and what is added to them, if anything."""

    name: str
    dtype: str
    pieces: tuple[Piece, ...]
    stored: tuple[
        StoredTensor, ...
    ] = ()  # those of its tensors that hold a box each, or one of several weights
    delta: Delta | None = None

    def copied(self, dtype: str) -> bool:
        """Tell whether its numbers are `dtype` as they lie in the pieces."""
        return self.delta is None and self.dtype == dtype

    def read(self, box: Box, axes: Axes, dtype: str | None = None) -> NDArray[Any]:
        """Return `box` stored as `axes`, in `dtype` or the weight's own; zeros where no piece lies.

        BadInput where a number is NaN, infinite or beyond `dtype`, or a file has become shorter.
        """
        array = gather(box, axes, self.pieces, STORAGE_DTYPES[self.dtype])
        refuse_shrunk()
        source, target = self.dtype, dtype or self.dtype
        if self.delta is not None:
            source = "float64" if source == "float64" else "float32"
            array = cast(array, self.dtype, source) + self.delta(box, axes)
        result = cast(array, source, target)
        if not all_finite(result, target):
            raise self._refused(cast(array, source, "float64"), cast(result, target, "float64"), target)
        return result

    def read_into(self, result: NDArray[Any], box: Box, axes: Axes, dtype: str) -> None:
        """Fill `result`, one dimension a letter of `axes`, with what `read` returns."""
        if self.copied(dtype):
            gather_into(result, box, axes, self.pieces)
            refuse_shrunk()
            if all_finite(result, dtype):
                return
        result[...] = self.read(box, axes, dtype).reshape(result.shape)

    def _refused(self, numbers: NDArray[Any], result: NDArray[Any], dtype: str) -> BadInput:
        """Return what to raise where `numbers` are none as `dtype`, as which they are `result`."""
        number = numbers[~np.isfinite(result)].flat[0]
        where = self.stored[0].file.path if self.stored else None
        if np.isfinite(number):
            problem = f"{printable(self.name)} holds {number:g}, which is beyond {dtype}"
            return BadInput(problem, where=where, hint=_WIDER)
        for stored in self.stored:
            try:
                deque(stored.chunks(), 0)
            except BadInput as error:
                return error
        return BadInput(f"{printable(self.name)} holds NaN or infinity", where=where, hint=NO_WEIGHTS)

    def whole(self, sizes: Mapping[str, int]) -> Box:
        """Return the box of the whole weight."""
        return {letter: (0, sizes[letter]) for letter in weight_axes(self.name).letters}


def unchanged(
    weights: Sequence[CanonicalWeight], boxes: Sequence[Box], axes: StoredAxes, dtype: str
) -> Chunks | None:
    """Return the bytes of a tensor of `boxes` of `weights` as some file holds them, None if none does."""
    if not all(weight.copied(dtype) for weight in weights):
        return None
    names = tuple(weight.name for weight in weights)
    for stored in weights[0].stored:
        if (stored.names, stored.boxes, stored.axes.order) == (names, tuple(boxes), axes.order):
            return stored.chunks()
    return None
