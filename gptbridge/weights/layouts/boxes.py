"""Pieces of canonical weights: what a file holds of one, and how pieces become the slabs of another file.

A whole tensor, one of q, k and v, a tensor-parallel shard and a padded embedding are all boxes:
a range for each letter of the weight's axes. Writing one box from others is the only operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.layouts.axes import Axes
from gptbridge.weights.layouts.copying import copy_into

Box = Mapping[str, tuple[int, int]]  # letter -> [start, stop) within the whole weight


@dataclass(frozen=True, slots=True)
class Piece:
    """A box of a canonical weight as some file stores it.

    `read(start, stop)` returns those entries of the letter `lead`, counted from the box's first, and all
    of the other letters', in any shape; a view of the file at best.
    """

    box: Box
    axes: Axes
    lead: str
    read: Callable[[int, int], NDArray[Any]]

    def spread(self, start: int, stop: int) -> NDArray[Any]:
        """Return entries [start, stop) of `lead`, counted in the whole weight, one dimension a letter."""
        sizes = {letter: high - low for letter, (low, high) in self.box.items()}
        first = self.box[self.lead][0]
        return self.axes.spread(self.read(start - first, stop - first), {**sizes, self.lead: stop - start})


@dataclass(frozen=True, slots=True)
class CutBox:
    """A box, and where it lies in a stored tensor that holds more."""

    box: Box
    slices: tuple[slice, ...]


def volume(box: Box) -> int:
    """Return how many items a box has."""
    return math.prod(stop - start for start, stop in box.values())


def shape_of(box: Box, axes: Axes) -> tuple[int, ...]:
    """Return the shape in which `box` is stored under `axes`."""
    return axes.shape({letter: stop - start for letter, (start, stop) in box.items()})


def cut_boxes(axes: Axes, ranges: Sequence[tuple[int, int]], sizes: Mapping[str, int]) -> Iterator[CutBox]:
    """Yield the boxes that a range [start, stop) of each stored dimension is made of.

    One box, unless a range of a dimension such as `(n d)` begins or ends inside a head.
    """
    runs = [
        list(_runs(group, start, stop, sizes))
        for group, (start, stop) in zip(axes.groups, ranges, strict=True)
    ]
    for chosen in product(*runs):
        box = {letter: bounds for _, _, part in chosen for letter, bounds in part.items()}
        yield CutBox(box, tuple(slice(low, high) for low, high, _ in chosen))


def _runs(
    letters: str, start: int, stop: int, sizes: Mapping[str, int]
) -> Iterator[tuple[int, int, dict[str, tuple[int, int]]]]:
    """Yield (low, high, box) for the boxes of a range of merged letters; low and high count from `start`."""
    first, rest = letters[0], letters[1:]
    inner = math.prod(sizes[letter] for letter in rest)
    position = start
    while position < stop:
        number, offset = divmod(position, inner)
        if offset == 0 and (whole := (stop - position) // inner):
            end = position + whole * inner
            full = {letter: (0, sizes[letter]) for letter in rest}
            yield position - start, end - start, {first: (number, number + whole), **full}
        else:
            end = min(stop, (number + 1) * inner)
            base = position - start
            for low, high, box in _runs(rest, offset, offset + end - position, sizes):
                yield base + low, base + high, {first: (number, number + 1), **box}
        position = end


def slabs(target: Box, axes: Axes, max_items: int) -> Iterator[Box]:
    """Cut `target` along its outermost letters into boxes of at most `max_items` items, in order."""
    letters = axes.letters
    for depth, letter in enumerate(letters):
        start, stop = target[letter]
        if stop - start == 1:
            continue
        inner = math.prod(target[x][1] - target[x][0] for x in letters[depth + 1 :])
        if (stop - start) * inner <= max_items:
            break
        if inner <= max_items:
            step = max(1, max_items // max(inner, 1))
            for low in range(start, stop, step):
                yield {**target, letter: (low, min(low + step, stop))}
            return
        for low in range(start, stop):
            yield from slabs({**target, letter: (low, low + 1)}, axes, max_items)
        return
    yield target


def gather(target: Box, axes: Axes, pieces: Sequence[Piece], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return `target` stored as `axes`, copied from the pieces that overlap it; zeros where none does.

    The pieces' boxes do not overlap one another.
    """
    sizes = [target[letter][1] - target[letter][0] for letter in axes.letters]
    found = [(piece, shared) for piece in pieces if (shared := _shared(target, piece.box)) is not None]
    covered = sum(volume(shared) for _, shared in found) == math.prod(sizes)
    result: NDArray[Any] = np.empty(sizes, dtype) if covered else np.zeros(sizes, dtype)
    for piece, shared in found:
        bounds = shared[piece.lead]
        source = piece.spread(*bounds).transpose(piece.axes.order_of(axes))
        held = {**piece.box, piece.lead: bounds}
        copy_into(result[_slices(shared, target, axes)], source[_slices(shared, held, axes)])
    return result.reshape(shape_of(target, axes))


def _shared(first: Box, second: Box) -> Box | None:
    """Return the box that two have in common, or None."""
    shared = {x: (max(first[x][0], second[x][0]), min(first[x][1], second[x][1])) for x in first}
    return None if any(start >= stop for start, stop in shared.values()) else shared


def _slices(inner: Box, outer: Box, axes: Axes) -> tuple[slice, ...]:
    return tuple(slice(inner[x][0] - outer[x][0], inner[x][1] - outer[x][0]) for x in axes.letters)
