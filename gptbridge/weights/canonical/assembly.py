"""From the tensors of all ranks' files to the pieces of canonical weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gptbridge.errors import BadInput, printable
from gptbridge.weights.canonical.casting import FLOATS
from gptbridge.weights.canonical.cutting import Stage
from gptbridge.weights.canonical.weight import CanonicalWeight, StoredTensor
from gptbridge.weights.formats import TensorInfo, WeightFile
from gptbridge.weights.formats.tensor_bytes import Part
from gptbridge.weights.layouts.boxes import CutBox, Piece, range_boxes, sizes_of, volume
from gptbridge.weights.layouts.matching import RANKS_HINT, Match, solve_sizes
from gptbridge.weights.layouts.rules import NativeTensor
from gptbridge.weights.layouts.stored import StoredAxes

_COMPARED_ITEMS = 1 << 20  # copies of tensors up to this size are compared between ranks


def stored_sizes(match: Match, stages: Sequence[Stage], where: Path) -> dict[str, int]:
    """Return the size of each letter that the shapes tell, parts of ranks put together."""
    tensors = [
        (name, native.axes, stages[stage].cutting.whole_shape(native, stages[stage].ranks[0].tensors[name]))
        for (stage, name), native in match.natives.items()
    ]
    return solve_sizes(tensors, {}, where)


def assemble(match: Match, stages: Sequence[Stage], sizes: Mapping[str, int]) -> dict[str, CanonicalWeight]:
    """Return every canonical weight, those that the layout leaves out too, which are zeros.

    BadInput when ranks disagree or a part is missing.
    """
    for stage in stages:
        _refuse_extra(stage, match)
    weights: dict[str, CanonicalWeight] = {}
    for (number, name), native in match.natives.items():
        held = list(_held(name, native, stages[number], sizes))
        weights |= {
            canonical: _weight(canonical, part, name, native, held)
            for part, canonical in enumerate(native.canonicals)
        }
    for template in match.layout.zeros:
        for name in dict.fromkeys(template.format(layer) for layer in range(match.num_layers)):
            weights[name] = CanonicalWeight(name, weights["wte.weight"].dtype, ())
    return weights


def _refuse_extra(stage: Stage, match: Match) -> None:
    """Refuse a rank with a tensor that the first rank of its stage lacks."""
    first = stage.ranks[0]
    for rank in stage.ranks[1:]:
        for name in rank.tensors.keys() - first.tensors.keys():
            if not match.layout.is_dropped(name):
                raise BadInput(
                    f"{printable(name)} is left over: {printable(first.path)} lacks it", where=rank.path
                )


def _held(name: str, native: NativeTensor, stage: Stage, sizes: Mapping[str, int]) -> Iterator[_Held]:
    """Yield what a tensor is put together from."""
    first = stage.ranks[0]
    _check_type(name, first)
    _check_shape(name, native, stage, sizes)
    held: dict[Any, WeightFile] = {}
    items = 0
    for number, rank in enumerate(stage.ranks):
        parts = stage.cutting.boxes(number, native, sizes)
        if len(stage.ranks) > 1:
            _check_same(name, first, rank)
            key = tuple(tuple(sorted(box.items())) for part in parts for box in part.boxes)
            if key in held:
                _check_copy(name, held[key], rank)
                continue
            held[key] = rank
        items += sum(volume(box) for part in parts for box in part.boxes)
        yield from _boxes_in(rank, name, native.axes, parts, sizes)
    whole = math.prod(native.axes.shape(sizes))
    if items != whole:
        raise BadInput(f"{printable(name)}: the ranks hold {items} of {whole} numbers", where=first.path)


@dataclass(frozen=True, slots=True)
class _Held:
    """A part of a tensor in a rank's file, and the boxes that it holds; `alone`: it is all of the file's."""

    rank: WeightFile
    part: Part
    boxes: Sequence[CutBox]
    alone: bool


def _boxes_in(
    rank: WeightFile, name: str, axes: StoredAxes, boxes: Sequence[CutBox], sizes: Mapping[str, int]
) -> Iterator[_Held]:
    """Yield the parts in which a rank's file holds `boxes`, of which a rank among others has one."""
    parts = rank.parts(name)
    if len(parts) == 1:
        yield _Held(rank, parts[0], boxes, alone=True)
        return
    for part in parts:
        ranges = [(low, low + size) for low, size in zip(part.offsets, part.info.shape, strict=True)]
        yield _Held(rank, part, list(range_boxes(axes, ranges, sizes)), alone=False)


def _weight(
    canonical: str, number: int, name: str, native: NativeTensor, held: Sequence[_Held]
) -> CanonicalWeight:
    return CanonicalWeight(
        canonical,
        held[0].rank.tensors[name].dtype,
        tuple(
            piece
            for each in held
            for box in each.boxes
            for piece in _pieces(native.axes, number, each.part, box)
        ),
        tuple(
            StoredTensor(native.canonicals, each.boxes[0].boxes, native.axes, each.rank, name)
            for each in held
            if each.alone and len(each.boxes) == 1
        ),
    )


def _pieces(axes: StoredAxes, number: int, part: Part, held: CutBox) -> Iterator[Piece]:
    """Yield what weight `number` of a stored tensor consists of, so that it can be read a few rows at a time.

    That is one piece, unless the file holds the tensor in several runs.
    """
    if held.part is not None:
        if held.part != number:
            return
        axes, number = StoredAxes((axes.parts[number],)), 0
    box, sizes = held.boxes[number], sizes_of(*held.boxes)
    lead = axes.parts[number].groups[0][0]
    first_row, rows = axes.rows(number, sizes)
    first_row += held.slices[0].start or 0
    (low, high), drop = box[lead], part.content.drop
    for start, stop in _runs(part, first_row, rows, high - low):
        reader = _Reader(part, axes, number, sizes, first_row + start * rows, rows, held.slices[1:])
        yield Piece({**box, lead: (low + start, low + stop)}, axes.parts[number], lead, reader, drop)


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads entries of the first letter of weight `number` of a stored tensor, each of `rows` rows."""

    part: Part
    axes: StoredAxes
    number: int
    sizes: Mapping[str, int]
    first_row: int
    rows: int
    rest: tuple[slice, ...]  # what to take of the dimensions after the first

    def __call__(self, start: int, stop: int) -> NDArray[Any]:
        low, high = (self.first_row + entry * self.rows for entry in (start, stop))
        rows = self.part.rows(low, high)[(slice(None), *self.rest)]
        lead = self.axes.parts[self.number].groups[0][0]
        return self.axes.view_rows(rows, self.number, {**self.sizes, lead: stop - start})


def _runs(part: Part, first_row: int, rows: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) of `count` entries, each of `rows` rows, in runs that a single extent holds.

    An entry that lies across the end of an extent is a run of its own.
    """
    extents = part.content.extents() or ()
    if len(extents) < 2:
        yield 0, count
        return
    row_bytes = part.info.nbytes // part.info.shape[0]
    bounds = {0, count}
    end = -first_row * row_bytes  # of the extent, counted from the first entry
    for extent in extents:
        end += extent.nbytes
        entry, inside = divmod(end, rows * row_bytes)
        bounds |= {entry, entry + 1} if inside else {entry}
    yield from pairwise(sorted(bound for bound in bounds if 0 <= bound <= count))


def _check_type(name: str, file: WeightFile) -> None:
    dtype = file.tensors[name].dtype
    if dtype not in FLOATS:
        raise BadInput(f"{printable(name)} is {dtype}", where=file.path, allowed=", ".join(FLOATS))


def _check_shape(name: str, native: NativeTensor, stage: Stage, sizes: Mapping[str, int]) -> None:
    info = stage.ranks[0].tensors[name]
    found, expected = stage.cutting.whole_shape(native, info), native.axes.shape(sizes)
    if found != expected:
        together = "" if found == info.shape else f", over all ranks {found}"
        part = native.axes.cut is not None and math.prod(expected) % max(math.prod(found), 1) == 0
        raise BadInput(
            f"{printable(name)} has shape {info.shape}{together}, not {expected}",
            where=stage.ranks[0].path,
            hint=RANKS_HINT if part else None,
        )


def _check_same(name: str, first: WeightFile, other: WeightFile) -> None:
    """Refuse a rank whose tensor is missing, or has another shape or type than the first rank's."""
    expected, info = first.tensors[name], other.tensors.get(name)
    if info is None:
        raise BadInput(f"{printable(name)} is missing, but {printable(first.path)} has it", where=other.path)
    if (info.shape, info.dtype) != (expected.shape, expected.dtype):
        raise BadInput(
            f"{printable(name)} is {_described(info)}, in {printable(first.path)} {_described(expected)}",
            where=other.path,
        )


def _described(info: TensorInfo) -> str:
    return f"{info.dtype} {info.shape}"


def _check_copy(name: str, first: WeightFile, other: WeightFile) -> None:
    """Refuse ranks whose copies of a part differ: they are not one checkpoint."""
    if first.tensors[name].num_elements > _COMPARED_ITEMS:
        return
    if first.read(name).tobytes() != other.read(name).tobytes():
        raise BadInput(
            f"{printable(name)} differs from the one in {printable(first.path)}: not ranks of one checkpoint",
            where=other.path,
        )
