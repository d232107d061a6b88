"""The initial weights of a whole model, drawn as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from gptbridge.rules.initial import initial_value
from gptbridge.weights.architecture import parameters, sizes
from gptbridge_specs import ModelSpec


class InitialWeights(Mapping[str, NDArray[np.float32]]):
    """The initial weights of a model by canonical name, whole or in slices."""

    def __init__(self, model: ModelSpec, seed: int) -> None:
        self._model = model
        self._seed = seed
        self._sizes = sizes(model)
        self._table = {p.name: p for p in parameters(model)}

    def read(self, name: str, box: Mapping[str, tuple[int, int]] | None = None) -> NDArray[np.float32]:
        """Return the slice `box` of a weight, or all of it, in its canonical shape."""
        return initial_value(self._table[name], self._model, self._sizes, self._seed, box)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)
