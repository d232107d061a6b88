"""Write a session's tensors to safetensors files: in a stream, in shards, never all in memory.

A file is 8 bytes of header length (little-endian), a JSON header {name: {dtype, shape,
data_offsets}} and the tensors' bytes without holes. Shards are held together by an index,
NAME.safetensors.index.json, with a `weight_map` from tensor to file.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BackendBroken
from gptbridge.weights.json_files import write_json

SHARD_BYTES = 5_000_000_000
_ALIGNMENT = 8

Shapes = Mapping[str, tuple[int, ...]]


def write_tensors(
    folder: Path,
    stem: str,
    shapes: Shapes,
    tensors: Iterable[tuple[str, NDArray[np.float32]]],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write float32 `tensors`, one at a time as they come, to STEM.safetensors in `folder`.

    `shapes` lists them all in the order of the file. Above `shard_bytes` they go to several files
    STEM-00001-of-0000N.safetensors and an index. Every file is on the disk when this returns.
    BackendBroken when what comes is not what `shapes` announces.
    """
    shards = _shards(stem, shapes, shard_bytes)
    with ExitStack() as stack:
        places: dict[str, tuple[IO[bytes], int]] = {}
        opened: list[IO[bytes]] = [stack.enter_context((folder / name).open("wb")) for name in shards]
        for file, members in zip(opened, shards.values(), strict=True):
            offset = _write_header(file, members)
            for tensor, shape in members.items():
                places[tensor] = (file, offset)
                offset += 4 * math.prod(shape)
        _fill(places, shapes, tensors)
        for file in opened:
            file.flush()
            os.fsync(file.fileno())
    if len(shards) > 1:
        weight_map = {tensor: name for name, members in shards.items() for tensor in members}
        total = sum(4 * math.prod(shape) for shape in shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_json(folder / f"{stem}.safetensors.index.json", index)


def _fill(
    places: dict[str, tuple[IO[bytes], int]],
    shapes: Shapes,
    tensors: Iterable[tuple[str, NDArray[np.float32]]],
) -> None:
    for tensor, array in tensors:
        if tensor not in places:
            raise BackendBroken("exported twice, or no tensor of this model", where=tensor)
        if array.shape != shapes[tensor]:
            raise BackendBroken(
                f"exported with shape {array.shape}", where=tensor, allowed=str(shapes[tensor])
            )
        file, offset = places.pop(tensor)
        file.seek(offset)
        file.write(np.ascontiguousarray(array, "<f4").data)
    if places:
        raise BackendBroken("not exported", where=next(iter(places)))


def _shards(stem: str, shapes: Shapes, shard_bytes: int) -> dict[str, Shapes]:
    """Return file name -> its tensors, in order, each file at most `shard_bytes` where a tensor allows."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for tensor, shape in shapes.items():
        nbytes = 4 * math.prod(shape)
        if groups[-1] and size + nbytes > shard_bytes:
            groups.append({})
            size = 0
        groups[-1][tensor] = shape
        size += nbytes
    if len(groups) == 1:
        return {f"{stem}.safetensors": groups[0]}
    return {
        f"{stem}-{number:05d}-of-{len(groups):05d}.safetensors": group
        for number, group in enumerate(groups, start=1)
    }


def _write_header(file: IO[bytes], shapes: Shapes) -> int:
    """Write the header of a float32 file; return where its first tensor starts."""
    # transformers opens a file only when its metadata names a framework's format.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor, shape in shapes.items():
        start, end = end, end + 4 * math.prod(shape)
        header[tensor] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    file.write(len(text).to_bytes(8, "little") + text)
    return 8 + len(text)
