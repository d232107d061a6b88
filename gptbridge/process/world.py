"""The ranks of a run as training sees them: who this one is, and what all of them agree on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


def _same(values: Sequence[float]) -> list[float]:
    return list(values)


@dataclass(frozen=True, slots=True)
class World:
    """One rank among `size`. Replicas are the ranks that see different samples of each batch.

    By default there is one rank, which agrees with itself.
    """

    rank: int = 0
    size: int = 1
    replica: int = 0  # which share of each batch this rank takes
    replicas: int = 1
    total: Callable[[Sequence[float]], list[float]] = _same  # each value summed over the replicas
    any: Callable[[bool], bool] = bool  # whether a flag is set on any rank
    barrier: Callable[[], None] = lambda: None  # wait until every rank is here
