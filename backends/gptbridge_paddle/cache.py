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


class Cache:
    """The keys and values of R rows, each up to `capacity` tokens; heads lie before rows, as in attention.

    `heads` are this rank's, by each of its `layers`. One more place takes what fills up the shorter rows of
    a call; nothing ever attends to it.
    """

    def __init__(
        self, layers: Iterable[int], heads: int, head_size: int, rows: int, capacity: int, dtype: str
    ) -> None:
        self.rows = Rows(rows, capacity)
        self._heads = heads
        shape = [heads * rows, capacity + 1, head_size]
        self._keys = {layer: paddle.zeros(shape, dtype) for layer in layers}
        self._values = {layer: paddle.zeros(shape, dtype) for layer in self._keys}

    def place(self, lengths: NDArray[np.int32], width: int) -> None:
        """Prepare for T = `width` new tokens in the rows of which `lengths` is not 0."""
        placed = self.rows.place(lengths, width)
        self.positions = paddle.to_tensor(placed.positions)  # (R, T)
        self.last = paddle.to_tensor(placed.last)  # (R,), of the new tokens
        hidden = np.where(placed.visible, np.float32(0), np.float32(-math.inf))
        self.mask = paddle.to_tensor(hidden)  # (R, T, S), 0 where a token is seen and -inf elsewhere
        self._span = placed.visible.shape[-1]
        rows = self._by_head(placed.rows)
        self._all = len(rows) == self._heads * len(self.rows.lengths)
        self._rows = paddle.to_tensor(rows)
        slots = np.tile(placed.slots, (self._heads, 1))
        row = np.broadcast_to(rows[:, None], slots.shape)
        self._places = paddle.to_tensor(row.copy()), paddle.to_tensor(slots)  # (N x R, T) each

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add `k` and `v` (N x R, T, D) of the new tokens; return all up to the longest, (N x R, S, D)."""
        held = []
        for store, new in ((self._keys[layer], k), (self._values[layer], v)):
            store.index_put_(self._places, new.astype(store.dtype))
            seen = store[:, : self._span]
            held.append(seen if self._all else paddle.index_select(seen, self._rows))
        return held[0], held[1]

    def keep(self, rows: NDArray[np.int32]) -> None:
        """Make row n what row `rows[n]` was; -1 begins an empty row."""
        chosen = paddle.to_tensor(self._by_head(np.maximum(rows, 0)))
        self.rows.keep(rows)
        for held in (self._keys, self._values):
            for layer, store in held.items():
                held[layer] = paddle.index_select(store, chosen)

    def _by_head(self, rows: NDArray[np.integer[Any]]) -> NDArray[np.int64]:
        """Return the places of `rows` of every head."""
        return (np.arange(self._heads)[:, None] * len(self.rows.lengths) + rows).flatten()
