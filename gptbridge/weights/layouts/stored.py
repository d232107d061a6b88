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

    @property
    def alone(self) -> list[str | None]:
        """The letter of each dimension that is a letter by itself, None for others."""
        joined = self.dim if len(self.parts) > 1 else None
        return [
            group if len(group) == 1 and number != joined else None
            for number, group in enumerate(self.parts[0].groups)
        ]

    @property
    def shared(self) -> str:
        """The letters outside the join, outermost first: all of them for a tensor that is one weight."""
        if len(self.parts) == 1:
            return self.parts[0].letters
        return "".join(self.parts[0].groups[: self.dim]) + self.outer

    @property
    def order(self) -> tuple[str, ...]:
        """What decides the order of the stored bytes, however the letters are grouped."""
        return self.shared, *(part.letters for part in self.parts)

    @property
    def cut(self) -> str | None:
        """The letter that tensor parallelism cuts, the same for all parts."""
        return self.parts[0].cut

    def dim_of(self, letter: str) -> int:
        """Return the dimension that `letter` lies in."""
        return next(number for number, group in enumerate(self.parts[0].groups) if letter in group)

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

    def rows(self, number: int, sizes: Mapping[str, int]) -> tuple[int, int]:
        """Return the row at which part `number` begins, and how many each entry of its first letter takes."""
        inner = math.prod(sizes[x] for x in self.parts[number].groups[0][1:])
        if len(self.parts) == 1 or self.dim > 0:
            return 0, inner
        lengths = self.lengths(sizes)
        if not self.outer:
            return sum(lengths[:number]), inner
        return 0, math.prod(sizes[x] for x in self.outer[1:]) * sum(lengths)

    def view_rows(self, rows: NDArray[Any], number: int, sizes: Mapping[str, int]) -> NDArray[Any]:
        """Return part `number` of the stored rows that `self.rows` counts as a view, like `view`.

        `sizes` has as many entries of the part's first letter as there are in `rows`.
        """
        alone = len(self.parts) > 1 and self.dim == 0 and not self.outer  # the rows are the part's own
        return self.parts[number].spread(rows, sizes) if alone else self.view(rows, number, sizes)


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
