"""Canonical weights of an open checkpoint as whole arrays, and their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.architecture import weight_axes
from gptbridge.weights.conversion.source import Source
from gptbridge.weights.conversion.streaming import SLAB_ITEMS
from gptbridge.weights.layouts.boxes import Box, shape_of, slabs
from gptbridge.weights.layouts.stored import StoredAxes


def canonical_box(name: str, source: Source) -> Box:
    """Return the box of a whole canonical weight, the vocabulary without padding."""
    whole = {**source.sizes, "v": source.model.vocab_size}
    return {letter: (0, whole[letter]) for letter in weight_axes(name).letters}


class CanonicalArrays(Mapping[str, NDArray[np.float32]]):
    """The weights of a source as float32 arrays in canonical layout, each made when it is asked for."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self._source.weights[name].read(
            canonical_box(name, self._source), weight_axes(name), "float32"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.names)

    def __len__(self) -> int:
        return len(self._source.names)


def digest(source: Source) -> str:
    """Return the SHA-256 of the canonical weights: equal for equal weights in any dialect and split.

    It covers a classifier's head, and LoRA that is kept apart.
    """
    total = hashlib.sha256()
    weights = source.all_weights
    lora = source.lora.weights if source.lora else {}
    for name in (*source.names, *sorted(lora)):
        weight = weights[name]
        order, box = weight_axes(name), canonical_box(name, source)
        total.update(f"{name} {weight.dtype} {shape_of(box, order)}\n".encode())
        for slab in slabs([box], StoredAxes((order,)), SLAB_ITEMS):
            total.update(weight.read(slab[0], order).data)
    return total.hexdigest()
