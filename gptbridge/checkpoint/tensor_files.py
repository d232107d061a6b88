"""Write what a session exports to safetensors: in a stream, in shards, never all in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BackendBroken
from gptbridge.weights.formats import Entry, TensorInfo
from gptbridge.weights.formats.safetensors import write_safetensors
from gptbridge.weights.formats.shards import SHARD_BYTES, write_sharded

Exported = Iterator[tuple[str, NDArray[np.float32]]]


def write_tensors(
    folder: Path,
    stem: str,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Iterable[tuple[str, NDArray[np.float32]]],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write float32 `tensors`, each as it comes, to STEM.safetensors in `folder`, or shards and an index.

    `shapes` lists them all in their order. BackendBroken when something else comes.
    """
    exported = iter(tensors)
    entries: list[Entry] = [
        (TensorInfo(name, "float32", shape), partial(_take, exported, name, shape))
        for name, shape in shapes.items()
    ]
    write_sharded(folder, stem, "safetensors", entries, write_safetensors, shard_bytes)
    for name, _ in exported:
        raise BackendBroken("exported, but no tensor of this model", where=name)


def _take(exported: Exported, name: str, shape: tuple[int, ...]) -> list[NDArray[np.float32]]:
    """Return the next tensor, which must be the one announced."""
    found, array = next(exported, (None, np.empty(0, np.float32)))
    if found != name:
        raise BackendBroken(f"exported where {name} was due", where=found or "nothing")
    if array.shape != shape:
        raise BackendBroken(f"exported with shape {array.shape}", where=name, allowed=str(shape))
    return [np.asarray(array, "<f4")]
