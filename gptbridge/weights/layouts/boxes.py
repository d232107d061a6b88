"""Pieces of canonical weights: what a file holds of one, and how pieces become the slabs of another file.

A whole tensor, a tensor-parallel shard and a padded embedding are all boxes: a range for each letter of
the weight's axes. Writing one box from others is the only operation.
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
from gptbridge.weights.layouts.stored import StoredAxes

Box = Mapping[str, tuple[int, int]]  # letter -> [start, stop) within the whole weight
Slab = Mapping[int, Box]  # what a run of a tensor's bytes holds of each of its parts, or of one, by number


# Of a file's map: what copying from it holds at a time, and what is not worth giving back.
_MAPPED_BYTES, _FEW_BYTES = 4 << 20, 64 << 10


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
    drop: Callable[[], None] | None = None  # gives back the memory that reading a file's map took

    def spread(self, start: int, stop: int) -> NDArray[Any]:
        """Return entries [start, stop) of `lead`, counted in the whole weight, one dimension a letter."""
        first = self.box[self.lead][0]
        sizes = {**sizes_of(self.box), self.lead: stop - start}
        return self.axes.spread(self.read(start - first, stop - first), sizes)


@dataclass(frozen=True, slots=True)
class CutBox:
    """Where in a stored tensor a box of each of its parts lies, or one box of the part number `part`."""

    boxes: tuple[Box, ...]
    slices: tuple[slice, ...]
    part: int | None = None


def volume(box: Box) -> int:
    """Return how many items a box has."""
    return math.prod(stop - start for start, stop in box.values())


def sizes_of(*boxes: Box) -> dict[str, int]:
    """Return how many entries of each letter boxes have that agree on them, such as those of q, k and v."""
    return {letter: stop - start for box in boxes for letter, (start, stop) in box.items()}


def shape_of(box: Box, axes: Axes) -> tuple[int, ...]:
    """Return the shape in which `box` is stored under `axes`."""
    return axes.shape(sizes_of(box))


def whole_boxes(axes: StoredAxes, sizes: Mapping[str, int]) -> tuple[Box, ...]:
    """Return the box of all of each part."""
    return tuple({letter: (0, sizes[letter]) for letter in part.letters} for part in axes.parts)


def cut_boxes(axes: Axes, ranges: Sequence[tuple[int, int]], sizes: Mapping[str, int]) -> Iterator[CutBox]:
    """Yield the boxes that a range [start, stop) of each stored dimension is made of.

    One box, unless a range of a dimension such as `(m d)` begins or ends inside a head.
    """
    runs = [
        list(_runs(group, start, stop, sizes))
        for group, (start, stop) in zip(axes.groups, ranges, strict=True)
    ]
    for chosen in product(*runs):
        box = {letter: bounds for _, _, part in chosen for letter, bounds in part.items()}
        yield CutBox((box,), tuple(slice(low, high) for low, high, _ in chosen))


def range_boxes(
    axes: StoredAxes, ranges: Sequence[tuple[int, int]], sizes: Mapping[str, int]
) -> Iterator[CutBox]:
    """Yield the boxes that a range [start, stop) of each stored dimension is made of, whatever it joins."""
    if len(axes.parts) == 1:
        yield from cut_boxes(axes.parts[0], ranges, sizes)
        return
    runs: list[list[tuple[int, int, int | None, tuple[Box, ...]]]] = [
        list(_joined_runs(axes, start, stop, sizes))
        if dim == axes.dim
        else [(low, high, None, (box,)) for low, high, box in _runs(group, start, stop, sizes)]
        for dim, (group, (start, stop)) in enumerate(zip(axes.parts[0].groups, ranges, strict=True))
    ]
    for chosen in product(*runs):
        rest = {x: held for dim, run in enumerate(chosen) if dim != axes.dim for x, held in run[3][0].items()}
        _, _, part, joined = chosen[axes.dim]
        slices = tuple(slice(low, high) for low, high, _, _ in chosen)
        yield CutBox(tuple({**rest, **box} for box in joined), slices, part)


def _joined_runs(
    axes: StoredAxes, start: int, stop: int, sizes: Mapping[str, int]
) -> Iterator[tuple[int, int, int | None, tuple[Box, ...]]]:
    """Yield (low, high, part, boxes) for a range of the joined dimension, low and high counted from `start`.

    Whole entries of the outer letters hold all parts, None; a part of an entry holds a box of one.
    """
    lengths = axes.lengths(sizes)
    inner = [part.groups[axes.dim][len(axes.outer) :] for part in axes.parts]
    entry = sum(lengths)
    position = start
    while position < stop:
        number, offset = divmod(position, entry)
        whole = 0 if offset or not axes.outer else (stop - position) // entry
        end = position + whole * entry if whole else min(stop, (number + 1) * entry)
        for low, high, outer in _runs(axes.outer, number, number + max(whole, 1), sizes):
            if whole:
                boxes = tuple({**outer, **{x: (0, sizes[x]) for x in letters}} for letters in inner)
                yield position - start + low * entry, position - start + high * entry, None, boxes
                continue
            begin = 0
            for part, (letters, length) in enumerate(zip(inner, lengths, strict=True)):
                first, last = max(offset, begin), min(offset + end - position, begin + length)
                for from_, to, box in _runs(letters, first - begin, last - begin, sizes):
                    base = position - start + first - offset
                    yield base + from_, base + to, part, ({**outer, **box},)
                begin += length
        position = end


def _runs(
    letters: str, start: int, stop: int, sizes: Mapping[str, int]
) -> Iterator[tuple[int, int, dict[str, tuple[int, int]]]]:
    """Yield (low, high, box) for the boxes of a range of merged letters; low and high count from `start`."""
    if not letters:  # one number
        yield from [(0, 1, {})] * (start < stop)
        return
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


def slabs(boxes: Sequence[Box], axes: StoredAxes, max_items: int) -> Iterator[Slab]:
    """Cut a stored tensor's boxes into slabs of at most `max_items` items, in the order of its bytes.

    Several parts come together in each slab, unless a single entry of the letters that they share is
    too large: then each comes in slabs of its own.
    """
    for slab in _slabs(dict(enumerate(boxes)), axes.shared, max_items):
        if len(slab) == 1 or sum(map(volume, slab.values())) <= max_items:
            yield slab
            continue
        for number, box in slab.items():
            yield from _slabs({number: box}, axes.parts[number].letters, max_items)


def _slabs(boxes: Slab, letters: str, max_items: int) -> Iterator[Slab]:
    """Cut boxes alike along `letters`, the outermost first, until they fit or no letter is left."""

    def within(low: int, high: int) -> Slab:
        return {number: {**box, letters[0]: (low, high)} for number, box in boxes.items()}

    items = sum(map(volume, boxes.values()))
    if not letters or items <= max_items:
        yield boxes
        return
    start, stop = next(iter(boxes.values()))[letters[0]]
    inner = items // (stop - start)
    if inner <= max_items and stop - start > 1:
        step = max_items // inner
        for low in range(start, stop, step):
            yield within(low, min(low + step, stop))
        return
    for low in range(start, stop):
        yield from _slabs(within(low, low + 1), letters[1:], max_items)


def gather(target: Box, axes: Axes, pieces: Sequence[Piece], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return `target` stored as `axes`, copied from the pieces that overlap it; zeros where none does."""
    result: NDArray[Any] = np.empty([target[x][1] - target[x][0] for x in axes.letters], dtype)
    gather_into(result, target, axes, pieces)
    return result.reshape(shape_of(target, axes))


def gather_into(result: NDArray[Any], target: Box, axes: Axes, pieces: Sequence[Piece]) -> None:
    """Fill `result`, one dimension a letter of `axes`, like `gather`.

    The pieces' boxes do not overlap one another.
    """
    found = [(piece, shared) for piece in pieces if (shared := _shared(target, piece.box)) is not None]
    if sum(volume(shared) for _, shared in found) < volume(target):
        result[...] = 0
    for piece, shared in found:
        low, high = shared[piece.lead]
        entry = volume({**piece.box, piece.lead: (0, 1)}) * result.itemsize
        step = max(1, _MAPPED_BYTES // entry)
        for start in range(low, high, step):
            bounds = start, min(start + step, high)
            part, held = ({**box, piece.lead: bounds} for box in (shared, piece.box))
            source = piece.spread(*bounds).transpose(piece.axes.order_of(axes))
            copy_into(result[_slices(part, target, axes)], source[_slices(part, held, axes)])
            if piece.drop is not None and entry * (bounds[1] - start) > _FEW_BYTES:
                piece.drop()


def _shared(first: Box, second: Box) -> Box | None:
    """Return the box that two have in common, or None."""
    shared = {x: (max(first[x][0], second[x][0]), min(first[x][1], second[x][1])) for x in first}
    return None if any(start >= stop for start, stop in shared.values()) else shared


def _slices(inner: Box, outer: Box, axes: Axes) -> tuple[slice, ...]:
    return tuple(slice(inner[x][0] - outer[x][0], inner[x][1] - outer[x][0]) for x in axes.letters)
