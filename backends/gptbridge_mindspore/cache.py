"""The tokens that a decoder has been fed: whole rows are computed anew for each new token."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gptbridge.rules.rows import Rows


class Cache:
    """The tokens of R rows, each up to `capacity`."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows = Rows(rows, capacity)
        self.tokens = np.zeros((rows, capacity + 1), np.int32)

    def place(self, lengths: NDArray[np.int32], width: int) -> None:
        """Prepare for `width` new tokens, of which `lengths` (R,) count in each row."""
        self._slots = self.rows.place(lengths, width).slots

    def add(self, tokens: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Add (R, T) tokens; return all of each row (R, S) and the place of its last (R, 1)."""
        np.put_along_axis(self.tokens, self._slots, tokens, 1)
        last = np.maximum(self.rows.lengths - 1, 0)
        return self.tokens[:, : last.max() + 1], last[:, None].astype(np.int32)

    def keep(self, rows: NDArray[np.int32]) -> None:
        """Make row n what row `rows[n]` was; -1 begins an empty row."""
        self.rows.keep(rows)
        self.tokens = self.tokens[np.maximum(rows, 0)]
