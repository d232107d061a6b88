"""Canonical weights, or moments of them, as float32 arrays."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from gptbridge.weights.architecture import weight_axes
from gptbridge.weights.canonical.weight import CanonicalWeight
from gptbridge.weights.layouts.boxes import Box


class CanonicalArrays(Mapping[str, NDArray[np.float32]]):
    """Weights by name as float32 arrays in canonical shape, whole or in slices, read when asked for."""

    def __init__(self, weights: Mapping[str, CanonicalWeight], sizes: Mapping[str, int]) -> None:
        self._weights = weights
        self._sizes = sizes

    def read(self, name: str, box: Box) -> NDArray[np.float32]:
        """Return a slice of a weight in its canonical shape. BadInput for what float32 cannot hold."""
        return self._weights[name].read(box, weight_axes(name), "float32")

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self.read(name, self._weights[name].whole(self._sizes))

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)
