"""Keys and values of the tokens that a decoder has been fed. Shapes: R rows, T new tokens, N heads of D."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptbridge.rules.rows import Rows
from gptbridge_specs import ModelSpec


class Cache:
    """The keys and values of R rows, each up to `capacity` tokens.

    One more place takes what fills up the shorter rows of a call; nothing ever attends to it.
    """

    def __init__(
        self, model: ModelSpec, rows: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.rows = Rows(rows, capacity)
        shape = (model.num_layers, rows, model.num_attention_heads, capacity + 1, model.head_size)
        self._keys = torch.zeros(shape, dtype=dtype, device=device)
        self._values = torch.zeros_like(self._keys)

    def place(self, lengths: NDArray[np.int32], width: int) -> None:
        """Prepare for T = `width` new tokens, of which `lengths` (R,) count in each row."""
        placed = self.rows.place(lengths, width)
        device = self._keys.device
        self.positions = torch.from_numpy(placed.positions).to(device)  # (R, T)
        self.last = torch.from_numpy(placed.last).to(device)  # (R,), of the new tokens
        self.visible = torch.from_numpy(placed.visible).to(device)[:, None]  # (R, 1, T, S)
        self._span = placed.visible.shape[-1]
        self._slots = torch.from_numpy(placed.slots).to(device)
        self._row = torch.arange(len(lengths), device=device)[:, None]

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Add `k` and `v` (R, N, T, D) of the new tokens; return all up to the longest row, (R, N, S, D)."""
        held = []
        for store, new in ((self._keys, k), (self._values, v)):
            store[layer][self._row, :, self._slots] = new.transpose(1, 2).to(store.dtype)
            held.append(store[layer, :, :, : self._span])
        return held[0], held[1]

    def keep(self, rows: NDArray[np.int32]) -> None:
        """Make row n what row `rows[n]` was; -1 begins an empty row."""
        self.rows.keep(rows)
        chosen = torch.from_numpy(np.maximum(rows, 0).astype(np.int64)).to(self._keys.device)
        self._keys, self._values = self._keys[:, chosen], self._values[:, chosen]
