"""A distributed checkpoint in safetensors files alone, as HuggingFaceStorageWriter saves it.

`shard-RANK-model-N-of-M.safetensors`, whose metadata has DCP_SHARDING_INFO: {name: {"saved_offsets": [...]}},
a JSON text. The shape of a tensor is as far as its parts reach.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gptbridge.files import decode_object, list_folder
from gptbridge.weights.formats.dcp_metadata import Place, Saved
from gptbridge.weights.formats.safetensors import read_safetensors
from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.weight_file import Contents

OFFSETS = "DCP_SHARDING_INFO"
_FILE = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")


def is_part(contents: Contents) -> bool:
    """Tell whether a file says of its tensors where in others they belong."""
    return contents.format == "safetensors" and OFFSETS in contents.metadata


def read_parts(first: SourceFile) -> dict[str, Saved]:
    """Return the tensors whose parts lie in the files beside `first`, by name."""
    names = [name for name in list_folder(first.path.parent) if _FILE.fullmatch(name)]
    saved: dict[str, Saved] = {}
    for name in names or [first.path.name]:
        source = SourceFile(first.path.with_name(name))
        try:
            _add(saved, read_safetensors(source))
        finally:
            source.close()
    return saved


def _add(saved: dict[str, Saved], contents: Contents) -> None:
    source = contents.source
    try:
        offsets = decode_object(contents.metadata.get(OFFSETS, "").encode())
    except ValueError as error:
        source.refuse(f"its {OFFSETS} is not JSON: {error}")
    for name, info in contents.tensors.items():
        place = Place(
            _offsets(source, name, offsets, info.shape), info.shape, source.path.name, 0, info.nbytes
        )
        ends = [offset + size for offset, size in zip(place.offsets, place.shape, strict=True)]
        known = saved.get(name, Saved(info.dtype, tuple(ends), ()))
        if (known.dtype, len(known.shape)) != (info.dtype, len(info.shape)):
            source.refuse("is of another type or number of dimensions in another file", tensor=name)
        shape = tuple(map(max, known.shape, ends))
        places = known.places if 0 in place.shape else (*known.places, place)
        saved[name] = Saved(info.dtype, shape, places)


def _offsets(
    source: SourceFile, name: str, offsets: Mapping[str, Any], shape: tuple[int, ...]
) -> tuple[int, ...]:
    match offsets.get(name):
        case {"saved_offsets": list(found)} if len(found) == len(shape):
            if all(type(offset) is int and 0 <= offset < 1 << 59 for offset in found):
                return tuple(found)
    return source.refuse(f"its entry in {OFFSETS} is malformed", tensor=name)
