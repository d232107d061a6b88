"""Keys and values of the tokens that a decoder has been fed. Shapes: R rows, T new tokens, N heads of D."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptbridge.rules.rows import Rows


class Cache:
    """The keys and values that `layers` have of `heads` heads, of R rows, each up to `capacity` tokens.

    One more place takes what fills up the shorter rows of a call; nothing ever attends to it.
    """

    def __init__(
        self,
        layers: Sequence[int],
        heads: int,
        head_size: int,
        rows: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.rows = Rows(rows, capacity)
        self._numbers = {layer: number for number, layer in enumerate(layers)}
        shape = (len(layers), rows, heads, capacity + 1, head_size)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros_like(self._keys)

    def place(self, lengths: NDArray[np.int32], width: int) -> None:
        """Prepare for T = `width` new tokens in the rows of which `lengths` is not 0."""
        placed = self.rows.place(lengths, width)
        device = self._keys.device
        self.positions = torch.from_numpy(placed.positions).to(device)  # (R, T)
        self.last = torch.from_numpy(placed.last).to(device)  # (R,), of the new tokens
        self._span = placed.visible.shape[-1]
        self.mask = None  # (R, 1, T, S), added to the scores: 0 where a token is seen and -inf elsewhere
        if not placed.visible.all():
            hidden = torch.from_numpy(~placed.visible)[:, None]
            mask = torch.zeros(hidden.shape, dtype=self._keys.dtype).masked_fill(hidden, -torch.inf)
            self.mask = mask.to(device)
        first, last = int(placed.rows[0]), int(placed.rows[-1])
        together = last - first + 1 == len(placed.rows)
        self._rows = slice(first, last + 1) if together else torch.from_numpy(placed.rows).to(device)
        self._slots = torch.from_numpy(placed.slots).to(device)
        self._row = torch.from_numpy(placed.rows[:, None]).to(device)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add `k` and `v` (R, N, T, D) of the new tokens; return all up to the longest row, (R, N, S, D)."""
        number, held = self._numbers[layer], []
        for store, new in ((self._keys[number], k), (self._values[number], v)):
            store[self._row, :, self._slots] = new.transpose(1, 2).to(store.dtype)
            held.append(store[self._rows, :, : self._span])
        return held[0], held[1]

    def keep(self, rows: NDArray[np.int32]) -> None:
        """Make row n what row `rows[n]` was; -1 begins an empty row."""
        span = int(self.rows.lengths.max(initial=0))
        self.rows.keep(rows)
        moved = np.flatnonzero((rows >= 0) & (rows != np.arange(len(rows))))
        to, taken = (
            torch.from_numpy(each).to(self._keys.device) for each in (moved, rows[moved].astype(np.int64))
        )
        for name in ("_keys", "_values"):
            store = getattr(self, name)
            if len(rows) > store.shape[1]:
                larger = store.new_zeros((store.shape[0], len(rows), *store.shape[2:]))
                larger[:, : store.shape[1]] = store
                setattr(self, name, store := larger)
            if len(moved):
                store[:, to, :, :span] = store[:, taken, :, :span]
