"""Axes of stored tensors, which hold one weight or several side by side: `i (q:m g d | k:m d | v:m d)`.

The alternatives between bars are joined along one dimension, whole (above), or within each entry of the
letters before them: `(m (q:g d | k:d | v:d)) i` has, for each key/value head, its group's rows of q, then
of k, then of v. What stands before a colon names the part for people; the rule that holds the axes says
which weight each part is, in the same order.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from numpy.typing import NDArray

from gptbridge.weights.layouts.axes import Axes, axes

_JOIN = re.compile(r"\((?P<outer>[a-z ]*)\((?P<inner>[^()]*\|[^()]*)\) *\)|\((?P<whole>[^()]*\|[^()]*)\)")
_PART = re.compile(r" *[a-z]+: *([a-z ]*)")


@dataclass(frozen=True, slots=True)
class StoredAxes:
    """How a stored tensor holds its parts, each a weight."""

    parts: tuple[Axes, ...]  # of each weight alone
    dim: int = 0  # the dimension along which several are joined
    outer: str = ""  # that dimension's letters outside the join, which all parts share

    @property
    def num_dims(self) -> int:
        """Dimensions of the stored tensor."""
        return len(self.parts[0].groups)

    def lengths(self, sizes: Mapping[str, int]) -> list[int]:
        """Return what each part takes of the joined dimension, within one entry of the outer letters."""
        return [math.prod(sizes[x] for x in part.groups[self.dim][len(self.outer) :]) for part in self.parts]

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape of the stored tensor."""
        shape = list(self.parts[0].shape(sizes))
        if len(self.parts) > 1:
            shape[self.dim] = math.prod(sizes[x] for x in self.outer) * sum(self.lengths(sizes))
        return tuple(shape)

    def view(self, array: NDArray[Any], number: int, sizes: Mapping[str, int]) -> NDArray[Any]:
        """Return part `number` of a stored array as a view, one dimension a letter.

        `sizes` are those of `array`, which may hold a slice of each part.
        """
        part = self.parts[number]
        if len(self.parts) == 1:
            return part.spread(array, sizes)
        before = [sizes[x] for group in part.groups[: self.dim] for x in group]
        outer = [sizes[x] for x in self.outer]
        after = [sizes[x] for group in part.groups[self.dim + 1 :] for x in group]
        lengths = self.lengths(sizes)
        start = sum(lengths[:number])
        joined = array.reshape([*before, *outer, sum(lengths), *after])
        chosen = joined[(*[slice(None)] * len(before + outer), slice(start, start + lengths[number]))]
        return part.spread(chosen, sizes)


@cache
def stored_axes(text: str) -> StoredAxes:
    """Parse `i (m d)` or, for several weights in one tensor, `i (m (q:g d | k:d | v:d))`."""
    join = _JOIN.search(text)
    if join is None:
        return StoredAxes((axes(text),))
    outer = (join["outer"] or "").replace(" ", "")
    parts = []
    for alternative in (join["inner"] or join["whole"]).split("|"):
        named = _PART.fullmatch(alternative)
        if named is None:
            raise ValueError(f"{text!r}: {alternative.strip()!r} is not NAME: LETTERS")
        parts.append(axes(f"{text[: join.start()]}({outer}{named[1]}){text[join.end() :]}"))
    dim = len(axes(text[: join.start()]).groups)
    return StoredAxes(tuple(parts), dim, outer)
