"""Where the tokens of a decoder's rows stand: the arithmetic of every cache, and the decoder over one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Placed:
    """The places of T new tokens in the R rows that have any; the longest holds S tokens then."""

    rows: NDArray[np.int64]  # (R,), which they are
    positions: NDArray[np.int64]  # (R, T), of what fills up a row some position that exists
    slots: NDArray[np.int64]  # (R, T), where in the cache; what fills up a row goes to `capacity`
    visible: NDArray[np.bool_]  # (R, T, S), which cached tokens each new one attends to
    last: NDArray[np.int64]  # (R,), which of the new tokens is the row's last


class Rows:
    """How many tokens each row holds."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.capacity = capacity
        self.lengths: NDArray[np.int64] = np.zeros(rows, np.int64)

    def place(self, lengths: NDArray[np.int32], width: int, span: int | None = None) -> Placed:
        """Append `lengths` of `width` new tokens to each row; return where they go.

        `span` fixes S, for what compiles each shape anew. ValueError where a row outgrows its capacity.
        """
        added = lengths.astype(np.int64)
        after = self.lengths + added
        if added.shape != self.lengths.shape or added.max(initial=0) > width:
            raise ValueError(
                f"{len(lengths)} lengths up to {added.max(initial=0)}, {len(after)} rows of {width}"
            )
        if after.max(initial=0) > self.capacity:
            raise ValueError(f"a row of {after.max()} tokens exceeds the capacity of {self.capacity}")
        rows = np.flatnonzero(added)
        offsets = np.arange(width)
        positions = self.lengths[rows, None] + offsets
        real = offsets < added[rows, None]
        visible = np.arange(span or max(1, after[rows].max(initial=0))) <= positions[..., None]
        self.lengths = after
        return Placed(
            rows,
            np.minimum(positions, self.capacity - 1),
            np.where(real, positions, self.capacity),
            visible,
            added[rows] - 1,
        )

    def keep(self, rows: NDArray[np.int32]) -> None:
        """Make row n what row `rows[n]` was; -1 begins an empty row."""
        self.lengths = np.where(rows < 0, 0, self.lengths[np.maximum(rows, 0)])


class RowCache(Protocol):
    """What a framework keeps of the tokens of each row."""

    def place(self, lengths: NDArray[np.int32], width: int) -> None:
        """Prepare for `width` new tokens in the rows of which `lengths` is not 0, of which so many count."""

    def keep(self, rows: NDArray[np.int32]) -> None:
        """Make row n what row `rows[n]` was; -1 begins an empty row."""


C = TypeVar("C", bound=RowCache)


class CachedDecoder(Generic[C]):
    """A `gptbridge.session.Decoder` over a cache and a model's `decode`.

    `decode(tokens, cache)` returns the (R, V) logits after each row's last of the (R, T) `tokens`, for
    which the cache was prepared. It sees the rows that grow, and no other.
    """

    def __init__(self, decode: Callable[[NDArray[np.int32], C], NDArray[np.float32]], cache: C) -> None:
        self._decode = decode
        self._cache = cache

    def feed(self, tokens: NDArray[np.int32], lengths: NDArray[np.int32]) -> NDArray[np.float32]:
        """Append the first `lengths` (R,) of each row's `tokens` (R, T); return (R, V) logits."""
        self._cache.place(lengths, tokens.shape[1])
        growing = lengths > 0
        found = self._decode(tokens[growing], self._cache)
        if growing.all():
            return found
        logits = np.zeros((len(lengths), found.shape[1]), np.float32)
        logits[growing] = found
        return logits

    def keep(self, rows: NDArray[np.int32]) -> None:
        """Make row n what row `rows[n]` was; -1 begins an empty row."""
        self._cache.keep(rows)
