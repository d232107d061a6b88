"""From the tensors of all ranks' files to the pieces of canonical weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptbridge.errors import BadInput, printable
from gptbridge.weights.conversion.canonical_weight import CanonicalWeight
from gptbridge.weights.conversion.casting import FLOATS
from gptbridge.weights.conversion.cutting import Stage
from gptbridge.weights.formats import TensorInfo, WeightFile
from gptbridge.weights.layouts.boxes import CutBox, Piece, volume
from gptbridge.weights.layouts.matching import Match, solve_sizes
from gptbridge.weights.layouts.rules import NativeTensor

_COMPARED_ITEMS = 1 << 20  # copies of tensors up to this size are compared between ranks
_Part = tuple[Piece, WeightFile, str, bool]  # with the tensor's name, and whether the piece is all of it


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
            yield _piece(name, native, rank, part, alone=len(boxes) == 1)
    whole = {letter: (0, sizes[letter]) for letter in native.axes.letters}
    if items != volume(whole):
        raise BadInput(
            f"{printable(name)}: the ranks hold {items} of {volume(whole)} numbers", where=first.path
        )


def _piece(name: str, native: NativeTensor, rank: WeightFile, part: CutBox, *, alone: bool) -> _Part:
    box = dict(part.box)
    if native.part is not None:
        box["p"] = (native.part, native.part + 1)

    def read() -> Any:
        return rank.read(name) if alone else rank.read(name)[part.slices]

    return Piece(box, native.box_axes, read), rank, name, alone


def _weight(name: str, parts: Sequence[_Part]) -> CanonicalWeight:
    _, first, tensor, _ = parts[0]
    dtype = first.tensors[tensor].dtype
    if dtype not in FLOATS:
        raise BadInput(f"{printable(tensor)} is {dtype}", where=first.path, allowed=", ".join(FLOATS))
    for _, file, other, _ in parts:
        if file.tensors[other].dtype != dtype:
            raise BadInput(
                f"{printable(other)} is {file.tensors[other].dtype}, but {printable(tensor)} is {dtype}",
                where=file.path,
            )
    origins = tuple((file, tensor) if alone else None for _, file, tensor, alone in parts)
    return CanonicalWeight(name, dtype, tuple(piece for piece, *_ in parts), origins)


def _check_shape(name: str, native: NativeTensor, stage: Stage, sizes: Mapping[str, int]) -> None:
    info = stage.ranks[0].tensors[name]
    found, expected = stage.cutting.whole_shape(native, info), native.axes.shape(sizes)
    if found != expected:
        together = "" if found == info.shape else f", over all ranks {found}"
        raise BadInput(
            f"{printable(name)} has shape {info.shape}{together}, not {expected}", where=stage.ranks[0].path
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
