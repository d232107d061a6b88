"""What an evaluation found, and by which protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Measures:
    """What a task found, and what it counted: the denominators among it."""

    measures: Mapping[str, float | None]
    counts: Mapping[str, int]


def exp_of(loss: float, cap: float | None) -> float | None:
    """Return exp(loss), of `cap` at the most; None where no number can hold it."""
    try:
        return math.exp(loss if cap is None else min(cap, loss))
    except OverflowError:
        return None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model's measures with all that decides them. `stride` is None where nothing overlaps.

    `measures` is None for what no number can hold, such as the exponential of a very large loss.
    """

    task: str
    protocol: str
    checkpoint: str
    backend: str
    data: str
    tokenizer: str  # its identity, a sha256
    window: int
    stride: int | None
    batch_size: int
    logging_interval: int | None
    detokenizer: str
    measures: Mapping[str, float | None]
    counts: Mapping[str, int]
    quirks: tuple[str, ...]  # in which the protocol differs from strict

    def __getitem__(self, name: str) -> Any:
        """Return a measure or a count."""
        return self.measures[name] if name in self.measures else self.counts[name]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)
