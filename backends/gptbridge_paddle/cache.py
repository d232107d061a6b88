"""Keys and values of the tokens that a decoder has been fed. Shapes: R rows, T new tokens, N heads of D."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from gptbridge.rules.rows import Rows

_FEWEST_PLACES = 64


class Cache:
    """The keys and values of R rows, each up to `capacity` tokens; heads lie before rows, as in attention.

    `heads` are this rank's, by each of its `layers`. A row has P places, more when they are used up.
    Attention looks at all of them: on a CPU Paddle copies a slice ten times as slowly as it multiplies with
    it. The first takes what fills up the shorter rows of a call; nothing ever attends to it.
    """

    def __init__(
        self, layers: Iterable[int], heads: int, head_size: int, rows: int, capacity: int, dtype: str
    ) -> None:
        self.rows = Rows(rows, capacity)
        self._heads = heads
        self._places = min(capacity + 1, _FEWEST_PLACES)
        shape = [heads * rows, self._places, head_size]
        self._keys = {layer: paddle.zeros(shape, dtype) for layer in layers}
        self._values = {layer: paddle.zeros(shape, dtype) for layer in self._keys}

    def place(self, lengths: NDArray[np.int32], width: int) -> None:
        """Prepare for T = `width` new tokens in the rows of which `lengths` is not 0."""
        placed = self.rows.place(lengths, width)
        span = placed.visible.shape[-1]
        self._grow(1 + span)
        self.positions = paddle.to_tensor(placed.positions)  # (R, T)
        self.last = paddle.to_tensor(placed.last)  # (R,), of the new tokens
        mask = np.full((*placed.slots.shape, self._places), -math.inf, np.float32)
        mask[..., 1 : 1 + span][placed.visible] = 0
        self.mask = paddle.to_tensor(mask)  # (R, T, P), 0 where a token is seen and -inf elsewhere
        rows = self._by_head(placed.rows)
        self._all = len(rows) == self._heads * len(self.rows.lengths)
        self._rows = paddle.to_tensor(rows)
        slots = np.where(placed.slots < self.rows.capacity, 1 + placed.slots, 0)
        slots = np.tile(slots, (self._heads, 1)) + self._places * rows[:, None]
        self._slots = paddle.to_tensor(slots.flatten())  # (N R T), among those of all rows

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add `k` and `v` (N x R, T, D) of the new tokens; return all places of their rows, (N x R, P, D)."""
        held = []
        for store, new in ((self._keys[layer], k), (self._values[layer], v)):
            places, rows = store.flatten(0, 1), new.flatten(0, 1)  # the first is a view
            paddle.scatter_(places, self._slots, rows.astype(store.dtype))
            held.append(store if self._all else paddle.index_select(store, self._rows))
        return held[0], held[1]

    def keep(self, rows: NDArray[np.int32]) -> None:
        """Make row n what row `rows[n]` was; -1 begins an empty row."""
        chosen = paddle.to_tensor(self._by_head(np.maximum(rows, 0)))
        self.rows.keep(rows)
        for held in (self._keys, self._values):
            for layer, store in held.items():
                held[layer] = paddle.index_select(store, chosen)

    def _grow(self, places: int) -> None:
        """Have at least so many places."""
        if places <= self._places:
            return
        more = min(max(places, 2 * self._places), self.rows.capacity + 1) - self._places
        for held in (self._keys, self._values):
            for layer, store in held.items():
                rows, _, size = store.shape
                held[layer] = paddle.concat([store, paddle.zeros([rows, more, size], store.dtype)], axis=1)
        self._places += more

    def _by_head(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the places of `rows` of every head."""
        return (np.arange(self._heads)[:, None] * len(self.rows.lengths) + rows).flatten()
