"""The initial weights of a whole model, drawn as they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from gptbridge.rules.initial import initial_value
from gptbridge.weights.architecture import parameters, sizes
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import TaskSpec


class InitialWeights(Mapping[str, NDArray[np.float32]]):
    """The initial weights of a model for a task by canonical name, whole or in slices."""

    def __init__(self, model: ModelSpec, seed: int, task: TaskSpec | None = None) -> None:
        self._model = model
        self._seed = seed
        self._sizes = sizes(model, task)
        self._table = {p.name: p for p in parameters(model, task)}

    def read(self, name: str, box: Mapping[str, tuple[int, int]] | None = None) -> NDArray[np.float32]:
        """Return the slice `box` of a weight, or all of it, in its canonical shape."""
        return initial_value(self._table[name], self._model, self._sizes, self._seed, box)

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._table)

    def __len__(self) -> int:
        return len(self._table)
