"""The groups of ranks that a backend makes for one rank, and how tensor ranks share a layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Self, TypeVar

from gptbridge.process.place import DIMENSIONS, REPLICAS, Place, share

G = TypeVar("G")  # a backend's own group


@dataclass(frozen=True, slots=True)
class Groups(Generic[G]):
    """The ranks that a rank works with; None where it would be alone."""

    all: G | None = None
    replicas: G | None = None  # they see different samples
    losses: G | None = None  # each has its own part of the loss, or none of it
    data: G | None = None
    sharding: G | None = None
    tensor: G | None = None
    pipeline: G | None = None
    ends: G | None = None  # the first and last stage, which both have a tied embedding

    @classmethod
    def of(cls, place: Place, make: Callable[[list[list[int]]], G | None], **others: G | None) -> Self:
        """Return the groups of the rank at `place`; every rank asks for the same, in the same order.

        `make` gets all groups of a kind and returns the one that has this rank.
        """

        def among(ranks: list[list[int]]) -> G | None:
            return None if len(ranks[0]) == 1 else make(ranks)

        return cls(
            all=among(place.groups(*DIMENSIONS)),
            replicas=among(place.groups(*REPLICAS)),
            losses=among(place.groups("pipeline", *REPLICAS)),
            data=among(place.groups("data")),
            sharding=among(place.groups("sharding")),
            tensor=among(place.groups("tensor")),
            pipeline=among(place.groups("pipeline")),
            ends=among(place.ends()) if place.degree("pipeline") > 1 else None,
            **others,
        )


@dataclass(slots=True)
class Cut(Generic[G]):
    """How the ranks of `group` share a layer: each computes its part of the heads, say, for all tokens.

    Between two such regions the residual stream is whole on every rank, or, where `length` is set, a rank has
    its part of the positions of that many tokens. By default there is one rank.
    """

    group: G | None = None
    index: int = 0
    degree: int = 1
    length: int | None = None

    @classmethod
    def of(cls, place: Place, groups: Groups[G]) -> Self:
        """Return what tensor parallelism leaves the rank at `place`."""
        return cls(groups.tensor, place.index("tensor"), place.degree("tensor"))

    def part(self, size: int) -> tuple[int, int]:
        """Return [start, stop) of this rank's part of `size` entries: as `tensor_slice` cuts weights."""
        return share(size, self.degree, self.index)

    def lengths(self, size: int) -> list[int]:
        """Return how many of `size` entries each rank has."""
        return [stop - start for start, stop in (share(size, self.degree, n) for n in range(self.degree))]
