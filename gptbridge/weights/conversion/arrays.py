"""Canonical weights of an open checkpoint as whole arrays, and their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.canonical import parameters
from gptbridge.weights.conversion.casting import cast
from gptbridge.weights.conversion.source import Source
from gptbridge.weights.conversion.streaming import SLAB_ITEMS
from gptbridge.weights.formats import STORAGE_DTYPES
from gptbridge.weights.layouts.axes import letter_sizes
from gptbridge.weights.layouts.boxes import Box, gather, slabs
from gptbridge.weights.layouts.rules import canonical_axes
from gptbridge_specs import ModelSpec


def canonical_box(name: str, model: ModelSpec) -> Box:
    """Return the box of a whole canonical weight, the vocabulary without padding."""
    sizes = letter_sizes(model)
    return {letter: (0, sizes[letter]) for letter in canonical_axes(name).letters}


class CanonicalArrays(Mapping[str, NDArray[np.float32]]):
    """The weights of a source as float32 arrays in canonical layout, each made when it is asked for."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._names = [parameter.name for parameter in parameters(source.model)]

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        weight = self._source.weights[name]
        stored = STORAGE_DTYPES[weight.dtype]
        array = gather(canonical_box(name, self._source.model), canonical_axes(name), weight.pieces, stored)
        return cast(array, weight.dtype, "float32").astype(np.float32, copy=False)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def digest(source: Source) -> str:
    """Return the SHA-256 of the canonical weights: equal for equal weights in any dialect and split."""
    total = hashlib.sha256()
    for parameter in parameters(source.model):
        weight = source.weights[parameter.name]
        total.update(f"{parameter.name} {weight.dtype} {parameter.shape}\n".encode())
        layout = canonical_axes(parameter.name)
        for part in slabs(canonical_box(parameter.name, source.model), layout, SLAB_ITEMS):
            total.update(gather(part, layout, weight.pieces, STORAGE_DTYPES[weight.dtype]).data)
    return total.hexdigest()
