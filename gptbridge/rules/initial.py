"""Initial weights, the same on every backend and whatever slice of them is asked for.

Each row of a weight, an entry of its first letter, is drawn from a stream of its own: Philox keyed by
(seed, name), its counter starting at the row's number times 2^64. So a rank draws the rows it holds and
no others.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from gptbridge.weights.architecture import Parameter
    from gptbridge_specs import ModelSpec

Box = Mapping[str, tuple[int, int]]


def initial_value(
    parameter: Parameter, model: ModelSpec, sizes: Mapping[str, int], seed: int, box: Box | None = None
) -> NDArray[np.float32]:
    """Return the `box` of one weight's initial value in its canonical shape; all of it for None.

    N(0, initializer_range), residual projections / sqrt(2L), zeros, or ones.
    """
    letters = parameter.axes
    bounds = [(box or {}).get(letter, (0, sizes[letter])) for letter in letters.letters]
    shape = letters.shape({x: stop - start for x, (start, stop) in zip(letters.letters, bounds, strict=True)})
    if parameter.initial in ("zeros", "ones"):
        return np.full(shape, parameter.initial == "ones", np.float32)
    std = model.initializer_range
    if parameter.initial == "residual":
        std /= math.sqrt(2 * model.num_layers)
    inner = [sizes[letter] for letter in letters.letters[1:]]
    chosen = tuple(slice(*bound) for bound in bounds[1:])
    rows = np.empty([stop - start for start, stop in bounds], np.float32)
    for row, values in zip(rows, _rows(parameter.name, seed, bounds[0], math.prod(inner)), strict=True):
        row[...] = values.reshape(inner)[chosen]
    rows *= np.float32(std)
    return rows.reshape(shape)


def _rows(name: str, seed: int, bounds: tuple[int, int], length: int) -> Iterator[NDArray[np.float32]]:
    """Yield rows [start, stop) of `length` standard normal numbers each."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=16).digest()
    philox = np.random.Philox(key=int.from_bytes(digest, "little"))
    stream = np.random.Generator(philox)
    state = philox.state
    for row in range(*bounds):
        state["state"]["counter"][:] = (0, row, 0, 0)
        philox.state = state  # a fresh buffer, wherever the row before it stopped
        yield stream.standard_normal(length, dtype=np.float32)
