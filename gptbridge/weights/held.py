"""What one rank holds of a model: which weights, which part of each, which of them are its own to save."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from gptbridge.process.place import REPLICAS, Dimension, Place, chunk
from gptbridge.weights.architecture import Parameter, parameters, tensor_slice
from gptbridge.weights.layouts.boxes import Box, range_boxes, sizes_of
from gptbridge.weights.layouts.rules import NativeTensor
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import TaskSpec

ONLY = Place()
TIED = "wte.weight"  # in a pipeline, the first stage holds it and the last one once more

View = Callable[[NDArray[Any]], NDArray[Any]]


def held_names(
    model: ModelSpec, place: Place = ONLY, task: TaskSpec | None = None, *, trained: bool = False
) -> list[str]:
    """Return the canonical weights of a rank's pipeline stage, in the order of the architecture table.

    With `trained`, of those that `task` trains.
    """
    layers = {layer for run in place.layers(model.num_layers) for layer in run}

    def here(parameter: Parameter) -> bool:
        if parameter.part == "block":
            return parameter.layer in layers
        tied = parameter.name == TIED and model.tie_word_embeddings
        return place.last if parameter.part == "head" else place.first or (tied and place.last)

    return [p.name for p in parameters(model, task) if here(p) and (p.trainable or not trained)]


@dataclass(frozen=True, slots=True)
class HeldPiece:
    """A box of one weight within a rank's tensor; `view` shows it there, one dimension a letter of `part`."""

    number: int  # of the weight among those that the tensor joins
    box: Box  # within the whole weight
    view: View
    whole: bool  # the tensor holds nothing else


@dataclass(frozen=True)
class HeldTensor:
    """A backend's tensor as the rank at `place` holds it.

    Tensor parallelism leaves it a range of one letter; `sliced`, sharding leaves it the `chunk` of what
    rows there then are.
    """

    native: NativeTensor
    sizes: Mapping[str, int]  # of the whole model
    place: Place
    sliced: bool

    @cached_property
    def boxes(self) -> tuple[Box, ...]:
        """What tensor parallelism leaves of each weight that the tensor joins."""
        rank, degree = self.place.index("tensor"), self.place.degree("tensor")
        return tuple(tensor_slice(part, self.sizes, rank, degree) for part in self.native.axes.parts)

    @cached_property
    def rows(self) -> tuple[int, int]:
        """What sharding leaves of the rows."""
        rows = self._cut_shape[0]
        shared = self.place.degree("sharding") if self.sliced else 1
        return chunk(rows, shared, self.place.index("sharding") if self.sliced else 0)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the tensor on this rank."""
        return self.rows[1] - self.rows[0], *self._cut_shape[1:]

    @property
    def owned(self) -> bool:
        """Of the ranks that hold this, the one that saves it and counts it in norms."""
        copies: list[Dimension] = [d for d in REPLICAS if d == "data" or not self.sliced]
        if self.native.axes.cut is None:
            copies.append("tensor")
        if TIED in self.native.canonicals:
            copies.append("pipeline")  # held twice at most, first of all by the first stage
        return self.place.index(*copies) == 0

    def pieces(self) -> Iterator[HeldPiece]:
        """Yield a piece for each weight of the tensor, or several where a row ends inside a head."""
        stored, cut = self.native.axes, sizes_of(*self.boxes)
        if self.rows == (0, self._cut_shape[0]):
            for number, box in enumerate(self.boxes):
                yield HeldPiece(number, box, _viewed(stored.view, number, cut), len(self.boxes) == 1)
            return
        ranges = (self.rows, *((0, length) for length in self._cut_shape[1:]))
        for found in range_boxes(stored, ranges, cut):
            for place, box in enumerate(found.boxes):
                number = place if found.part is None else found.part
                spread = stored.view if found.part is None else _alone(stored.parts)
                view = _viewed(spread, number, sizes_of(*found.boxes), found.slices)
                shape = tuple(part.stop - part.start for part in found.slices)
                yield HeldPiece(
                    number, self._moved(box, number), view, shape == self.shape and len(found.boxes) == 1
                )

    @property
    def _cut_shape(self) -> tuple[int, ...]:
        return self.native.axes.shape(sizes_of(*self.boxes))

    def _moved(self, box: Box, number: int) -> Box:
        """Return a box within this rank's part of a weight as a box within the whole weight."""
        starts = {letter: start for letter, (start, _) in self.boxes[number].items()}
        return {letter: (low + starts[letter], high + starts[letter]) for letter, (low, high) in box.items()}


def _alone(parts: Any) -> Callable[[NDArray[Any], int, Mapping[str, int]], NDArray[Any]]:
    return lambda array, number, sizes: parts[number].spread(array, sizes)


def _viewed(
    spread: Callable[[NDArray[Any], int, Mapping[str, int]], NDArray[Any]],
    number: int,
    sizes: Mapping[str, int],
    slices: tuple[slice, ...] = (),
) -> View:
    return lambda array: spread(array[slices], number, sizes)
