"""Where a rank stands among the devices of a run, and which ranks it works with.

Ranks count tensor parallelism fastest, then sharding, then data, then pipeline stages: ranks that exchange
most are neighbours, on one machine where they fit.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from gptbridge_specs.run import ParallelSpec

Dimension = Literal["pipeline", "data", "sharding", "tensor"]
DIMENSIONS: tuple[Dimension, ...] = ("pipeline", "data", "sharding", "tensor")  # slowest first
REPLICAS: tuple[Dimension, ...] = ("data", "sharding")  # along these, ranks see different samples


@dataclass(frozen=True, slots=True)
class Place:
    """One rank of the layout `parallel`; by default the only one."""

    parallel: ParallelSpec = field(default_factory=ParallelSpec)
    rank: int = 0

    def degree(self, *dimensions: Dimension) -> int:
        """Return how many ranks lie along `dimensions`."""
        size = 1
        for dimension in dimensions:
            size *= getattr(self.parallel, dimension)
        return size

    def index(self, *dimensions: Dimension) -> int:
        """Return this rank's number among those along `dimensions`, the last one counted fastest."""
        at, place = dict[str, int](), self.rank
        for dimension in reversed(DIMENSIONS):
            place, at[dimension] = divmod(place, self.degree(dimension))
        number = 0
        for dimension in dimensions:
            number = number * self.degree(dimension) + at[dimension]
        return number

    def groups(self, *dimensions: Dimension) -> list[list[int]]:
        """Return all groups of ranks that differ along `dimensions` alone, each in the order of `index`.

        Every rank gets the same list: some frameworks make groups only where all ranks make them in turn.
        """
        others = [d for d in DIMENSIONS if d not in dimensions]
        found: dict[int, list[int]] = {}
        for rank in range(self.degree(*DIMENSIONS)):
            found.setdefault(Place(self.parallel, rank).index(*others), []).append(rank)
        return [sorted(g, key=lambda r: Place(self.parallel, r).index(*dimensions)) for g in found.values()]

    def ends(self) -> list[list[int]]:
        """Return the groups of a first and a last pipeline stage, which both hold a tied embedding."""
        return [[group[0], group[-1]] for group in self.groups("pipeline")]

    @property
    def first(self) -> bool:
        """The model begins here: in a pipeline, its first stage."""
        return self.index("pipeline") == 0

    @property
    def last(self) -> bool:
        """The model ends here."""
        return self.index("pipeline") == self.parallel.pipeline - 1

    def layers(self, num_layers: int) -> list[range]:
        """Return the runs of layers that this rank's stage has, one for each virtual stage."""
        stages, virtual = self.parallel.pipeline, self.parallel.virtual_pipeline
        cuts = [n * num_layers // (stages * virtual) for n in range(stages * virtual + 1)]
        mine = range(self.index("pipeline"), stages * virtual, stages)
        return [range(cuts[n], cuts[n + 1]) for n in mine]


def places(parallel: ParallelSpec) -> list[Place]:
    """Return the place of every rank."""
    return [Place(parallel, rank) for rank in range(Place(parallel).degree(*DIMENSIONS))]


def share(size: int, degree: int, index: int) -> tuple[int, int]:
    """Return [start, stop) of part `index` of `size` entries; parts differ by one at most."""
    return index * size // degree, (index + 1) * size // degree


def chunk(size: int, degree: int, index: int) -> tuple[int, int]:
    """Return [start, stop) of part `index` of `size` entries over `degree` ranks: torch.chunk's rule."""
    step = -(-size // degree)
    return min(size, index * step), min(size, (index + 1) * step)
