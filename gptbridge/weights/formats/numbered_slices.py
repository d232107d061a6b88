"""Tensors in numbered slices: metadata.json, and the safetensors files beside it that hold them.

    {"state_dict_metadata": {NAME: {"properties": {"dtype": ...}, "global_shape": [...],
        "axis_fragmentations": [...], "chunk": [{"global_offset": [N], "local_shape": [...]}, ...]}},
     "storage_data": {"('NAME', (N,))": [{"file_name": ...}, ...]}}

N is the number of a slice, counted row by row over how often each axis is cut. All files of a slice hold the
same. What lies in the optimizer's files is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gptbridge.errors import printable
from gptbridge.weights.formats.dcp import contents_in_boxes
from gptbridge.weights.formats.dcp_metadata import Place, Saved, Shape, check_file_name
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.tensor import STORAGE_DTYPES, describe_bad_shape
from gptbridge.weights.formats.weight_file import Contents

FORMAT, TENSORS = "slices", "state_dict_metadata"
_OPTIMIZER = re.compile(r"(?:.*-)?opt-\d{7}-\d{7}\.safetensors")


def read_slices(metadata: SourceFile, content: Mapping[str, Any]) -> list[Contents]:
    """Return what `content`, that of metadata.json, describes, and the files that it names, open."""
    match content:
        case {"state_dict_metadata": dict(described), "storage_data": dict(stored)}:
            saved = dict(_tensors(metadata, described, stored))
        case _:
            metadata.refuse(f"holds no {TENSORS} with its storage_data")
    return contents_in_boxes(metadata, saved, FORMAT)


def _tensors(
    metadata: SourceFile, described: Mapping[str, Any], stored: Mapping[str, Any]
) -> Iterator[tuple[str, Saved]]:
    for name, value in described.items():
        match value:
            case {
                "properties": {"dtype": str(dtype)},
                "global_shape": list(shape),
                "axis_fragmentations": list(counts),
                "chunk": [*slices],
            } if len(counts) == len(shape) and dtype.lower() in STORAGE_DTYPES:
                pass
            case _:
                metadata.refuse("its description is malformed", tensor=name)
        if problem := describe_bad_shape(shape) or _describe_bad_cut(shape, counts, value.get("layout")):
            metadata.refuse(problem, tensor=name)
        part = tuple(size // count for size, count in zip(shape, counts, strict=True))
        places = [_place(metadata, name, counts, part, entry, stored) for entry in slices]
        if not places or not all(_OPTIMIZER.fullmatch(place.file) for place in places):
            yield name, Saved(dtype.lower(), tuple(shape), tuple(places))


def _describe_bad_cut(shape: Sequence[int], counts: Sequence[object], layout: object) -> str | None:
    if any(type(count) is not int or count < 1 or x % count for x, count in zip(shape, counts, strict=True)):
        return f"its shape {tuple(shape)} cannot be cut into {printable(counts, 60)}"
    if isinstance(layout, dict) and layout.get("interleaved_parallel"):
        return "it is cut interleaved, which is not read"
    return None


def _place(
    metadata: SourceFile,
    name: str,
    counts: Sequence[int],
    part: Shape,
    entry: object,
    stored: Mapping[str, Any],
) -> Place:
    """Return where a slice lies, of a tensor that is cut into `counts` slices of the shape `part`."""
    match entry:
        case {"global_offset": [int(number)], "local_shape": list(shape)} if tuple(shape) == part:
            pass
        case _:
            metadata.refuse(f"its slice {printable(entry, 80)} is malformed", tensor=name)
    match stored.get(str((name, (number,)))):
        case [{"file_name": str(file)}, *_]:
            check_file_name(metadata, name, file)
        case _:
            metadata.refuse(f"its slice {number} is in no file", tensor=name)
    offsets: list[int] = []
    rest = number
    for count, size in zip(reversed(counts), reversed(part), strict=True):
        rest, index = divmod(rest, count)
        offsets.insert(0, index * size)
    if rest:
        metadata.refuse(f"it is cut into {printable(counts, 60)}, and has a slice {number}", tensor=name)
    return Place(tuple(offsets), part, file, 0, 0)
