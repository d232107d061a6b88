"""From the tensors of all ranks' files to the pieces of canonical weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from gptbridge.errors import BadInput, printable
from gptbridge.weights.conversion.canonical_weight import CanonicalWeight, StoredBox
from gptbridge.weights.conversion.casting import FLOATS
from gptbridge.weights.conversion.cutting import Stage
from gptbridge.weights.formats import TensorInfo, WeightFile
from gptbridge.weights.layouts.boxes import CutBox, Piece, volume
from gptbridge.weights.layouts.matching import RANKS_HINT, Match, solve_sizes
from gptbridge.weights.layouts.rules import NativeTensor

_COMPARED_ITEMS = 1 << 20  # copies of tensors up to this size are compared between ranks


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a canonical weight that a rank's file holds, and the tensor that it is or lies in."""

    pieces: tuple[Piece, ...]
    file: WeightFile
    tensor: str
    stored: StoredBox | None  # if it is all of the tensor


def stored_sizes(match: Match, stages: Sequence[Stage], where: Path) -> dict[str, int]:
    """Return the size of each letter that the shapes tell, parts of ranks put together."""
    tensors = [
        (
            name,
            native.axes,
            stages[stage].cutting.whole_shape(native, stages[stage].ranks[0].tensors[name]),
        )
        for (stage, name), native in match.natives.items()
    ]
    return solve_sizes(tensors, {}, where)


def assemble(match: Match, stages: Sequence[Stage], sizes: Mapping[str, int]) -> dict[str, CanonicalWeight]:
    """Return every canonical weight; BadInput when ranks disagree or a part is missing."""
    for stage in stages:
        _refuse_extra(stage, match)
    found: dict[str, list[_Part]] = {}
    for (number, name), native in match.natives.items():
        parts = list(_parts(name, native, stages[number], sizes))
        found.setdefault(native.canonical, []).extend(parts)
    return {name: _weight(name, parts) for name, parts in found.items()}


def _refuse_extra(stage: Stage, match: Match) -> None:
    """Refuse a rank with a tensor that the first rank of its stage lacks."""
    first = stage.ranks[0]
    for rank in stage.ranks[1:]:
        for name in rank.tensors.keys() - first.tensors.keys():
            if not match.layout.is_dropped(name):
                raise BadInput(
                    f"{printable(name)} is left over: {printable(first.path)} lacks it", where=rank.path
                )


def _parts(name: str, native: NativeTensor, stage: Stage, sizes: Mapping[str, int]) -> Iterator[_Part]:
    first = stage.ranks[0]
    _check_shape(name, native, stage, sizes)
    held: dict[Any, WeightFile] = {}
    items = 0
    for number, rank in enumerate(stage.ranks):
        _check_same(name, first, rank)
        boxes = stage.cutting.boxes(number, native, sizes)
        key = tuple(tuple(sorted(part.box.items())) for part in boxes)
        if key in held:
            _check_copy(name, held[key], rank)
            continue
        held[key] = rank
        for part in boxes:
            items += volume(part.box)
            yield _part(name, native, rank, part, alone=len(boxes) == 1)
    whole = {letter: (0, sizes[letter]) for letter in native.axes.letters}
    if items != volume(whole):
        raise BadInput(
            f"{printable(name)}: the ranks hold {items} of {volume(whole)} numbers", where=first.path
        )


def _part(name: str, native: NativeTensor, rank: WeightFile, part: CutBox, *, alone: bool) -> _Part:
    """Return what `part` of a rank's tensor consists of, so that it can be read a few rows at a time.

    That is one piece, unless the file holds the tensor in several runs.
    """
    box = dict(part.box)
    if native.part is not None:
        box["p"] = (native.part, native.part + 1)
    lead, inner = native.axes.groups[0][0], native.axes.groups[0][1:]
    rows = math.prod(box[letter][1] - box[letter][0] for letter in inner)  # for one entry of `lead`
    first_row = part.slices[0].start or 0
    low, high = box[lead]
    pieces = []
    for start, stop in _runs(rank, name, first_row, rows, high - low):
        read = partial(_read, partial(rank.rows, name), first_row + start * rows, rows, part.slices[1:])
        pieces.append(Piece({**box, lead: (low + start, low + stop)}, native.box_axes, lead, read))
    stored = StoredBox(box, native.box_axes, rank, name) if alone else None
    return _Part(tuple(pieces), rank, name, stored)


def _read(
    rows_from: Callable[[int, int], NDArray[Any]],
    first_row: int,
    rows: int,
    rest: tuple[slice, ...],
    start: int,
    stop: int,
) -> NDArray[Any]:
    return rows_from(first_row + start * rows, first_row + stop * rows)[(slice(None), *rest)]


def _runs(rank: WeightFile, name: str, first_row: int, rows: int, count: int) -> Iterator[tuple[int, int]]:
    """Yield [start, stop) of `count` entries, each of `rows` rows, in runs that a single extent holds.

    An entry that lies across the end of an extent is a run of its own.
    """
    extents = rank.extents(name) or ()
    if len(extents) < 2:
        yield 0, count
        return
    row_bytes = rank.tensors[name].nbytes // rank.tensors[name].shape[0]
    bounds = {0, count}
    end = -first_row * row_bytes  # of the extent, counted from the first entry
    for extent in extents:
        end += extent.nbytes
        entry, inside = divmod(end, rows * row_bytes)
        bounds |= {entry, entry + 1} if inside else {entry}
    yield from pairwise(sorted(bound for bound in bounds if 0 <= bound <= count))


def _weight(name: str, parts: Sequence[_Part]) -> CanonicalWeight:
    first = parts[0]
    dtype = first.file.tensors[first.tensor].dtype
    if dtype not in FLOATS:
        raise BadInput(
            f"{printable(first.tensor)} is {dtype}", where=first.file.path, allowed=", ".join(FLOATS)
        )
    for part in parts:
        other = part.file.tensors[part.tensor].dtype
        if other != dtype:
            raise BadInput(
                f"{printable(part.tensor)} is {other}, but {printable(first.tensor)} is {dtype}",
                where=part.file.path,
            )
    return CanonicalWeight(
        name,
        dtype,
        tuple(piece for part in parts for piece in part.pieces),
        tuple(part.stored for part in parts if part.stored is not None),
    )


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
