"""The ranks of a run as training sees them: who this one is, and what all of them agree on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gptbridge.errors import UsageError
from gptbridge.process.place import DIMENSIONS, REPLICAS, Place
from gptbridge_specs.run import ParallelSpec


def _same(values: Sequence[float]) -> list[float]:
    return list(values)


@dataclass(frozen=True, slots=True)
class World:
    """One rank among those of a run. Replicas are the ranks that see different samples of each batch.

    By default there is one rank, which agrees with itself. `handle` is the backend's own: its groups.
    """

    place: Place = field(default_factory=Place)
    total: Callable[[Sequence[float]], list[float]] = _same  # each value summed over the replicas
    any: Callable[[bool], bool] = bool  # whether a flag is set on any rank
    barrier: Callable[[], None] = lambda: None  # wait until every rank is here
    handle: Any = None

    @property
    def rank(self) -> int:
        """This process's number; 0 keeps the log."""
        return self.place.rank

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return self.place.degree(*DIMENSIONS)

    @property
    def replica(self) -> int:
        """Which share of each batch this rank takes."""
        return self.place.index(*REPLICAS)

    @property
    def replicas(self) -> int:
        """Into how many shares each batch is cut."""
        return self.place.degree(*REPLICAS)


def has_others(parallel: ParallelSpec, *, started: int) -> bool:
    """Return whether a rank of `parallel` has others to meet; UsageError where another number was started."""
    ranks = parallel.world_size
    if ranks != started:
        raise UsageError(
            f"this layout has {ranks} ranks, and {started} were started",
            where="parallel",
            hint=f"Start it with `gptbridge train --devices {ranks}`.",
        )
    return ranks > 1
