"""A range of each dimension of a stored tensor, as boxes of the weights in it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge.weights.layouts.boxes import range_boxes, sizes_of, volume, whole_boxes
from gptbridge.weights.layouts.rules import BY_HEAD, CONCATENATED
from gptbridge.weights.layouts.stored import StoredAxes, stored_axes

Array = NDArray[Any]
SIZES = {"i": 3, "o": 3, "m": 2, "g": 2, "d": 3, "f": 4, "v": 5}
LAYOUTS = (
    *("v i", "i f", "(m g d) o", "o (m g d)", "i"),
    *(f"i {CONCATENATED}", f"{CONCATENATED} i", CONCATENATED, f"{BY_HEAD} i", f"i {BY_HEAD}", BY_HEAD),
    *("(m d (q:g | k: | v:)) i", "i (m d (q:g | k: | v:))"),
)


def cuts(length: int) -> list[tuple[int, ...]]:
    """Ways to cut a dimension: whole, in every two, in single numbers."""
    halves = [(0, middle, length) for middle in range(1, length)]
    return [(0, length), *halves, tuple(range(length + 1))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_number_of_every_weight_is_found_once(layout: str) -> None:
    """However a tensor is cut, its parts' boxes are what the whole tensor says of each weight."""
    axes = stored_axes(layout)
    shape = axes.shape(SIZES)
    array = np.arange(1, math.prod(shape) + 1).reshape(shape)
    expected = [axes.view(array, number, SIZES) for number in range(len(axes.parts))]
    for edges in itertools.product(*map(cuts, shape)):
        found = [np.zeros_like(part) for part in expected]
        ranges = itertools.product(*(itertools.pairwise(along) for along in edges))
        for held in ranges:
            part = array[tuple(slice(*bounds) for bounds in held)]
            items = put(part, axes, held, found)
            assert items == part.size
        for weight, whole in zip(found, expected, strict=True):
            assert (weight == whole).all(), edges


def put(part: Array, axes: StoredAxes, held: tuple[tuple[int, int], ...], found: list[Array]) -> int:
    """Put what a part holds of each weight into its place; return how many numbers that is."""
    items = 0
    for cut in range_boxes(axes, held, SIZES):
        numbers = range(len(axes.parts)) if cut.part is None else [cut.part]
        for number, box in zip(numbers, cut.boxes, strict=True):
            alone = cut.part is not None
            own = StoredAxes((axes.parts[number],)) if alone else axes
            view = own.view(part[cut.slices], 0 if alone else number, sizes_of(*cut.boxes))
            where = tuple(slice(*box[letter]) for letter in axes.parts[number].letters)
            assert not found[number][where].any()
            found[number][where] = view
            items += volume(box)
    return items


def test_a_whole_tensor_is_one_box_of_each_weight() -> None:
    axes = stored_axes(f"{BY_HEAD} i")
    (cut,) = range_boxes(axes, [(0, size) for size in axes.shape(SIZES)], SIZES)
    assert (cut.part, cut.boxes) == (None, whole_boxes(axes, SIZES))
