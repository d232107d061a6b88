"""Tensor layouts in words: `i (m g d)` is a matrix whose columns run over heads, then places in a head.

Letters: i hidden width coming in, o hidden width going out, m key/value head, g query head of a key/value
head, d place within a head, f feed-forward width, v token of the vocabulary, t position, c label of a
classifier, r rank of LoRA.
Tensor parallelism cuts m, f or v and nothing else, in every system.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from numpy.typing import NDArray

CUT = "mfv"  # the letters that tensor parallelism may cut


@dataclass(frozen=True)
class Axes:
    """The letters of a tensor, grouped by dimension."""

    groups: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)

    @property
    def words(self) -> list[str]:
        """Each dimension as it is written: `i`, `(m g d)`."""
        return [group if len(group) == 1 else f"({' '.join(group)})" for group in self.groups]

    @cached_property
    def letters(self) -> str:
        """Every letter, outermost first."""
        return "".join(self.groups)

    @cached_property
    def cut(self) -> str | None:
        """The letter that tensor parallelism cuts, if this tensor has one."""
        return next((letter for letter in self.letters if letter in CUT), None)

    def shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """Return the shape as stored, dimensions merged."""
        return tuple(math.prod(map(sizes.__getitem__, group)) for group in self.groups)

    def spread(self, array: NDArray[Any], sizes: Mapping[str, int]) -> NDArray[Any]:
        """Return a view of a stored array with one dimension a letter."""
        return array.reshape([sizes[letter] for letter in self.letters])

    def order_of(self, other: Axes) -> tuple[int, ...]:
        """Return the transposition that turns this tensor, spread, into `other`, spread."""
        return tuple(self.letters.index(letter) for letter in other.letters)


@cache
def axes(text: str) -> Axes:
    """Parse `i (m g d)`."""
    groups: list[str] = []
    inside = False
    for character in text.replace(" ", ""):
        if character in "()":
            inside = character == "("
            if inside:
                groups.append("")
        elif inside:
            groups[-1] += character
        else:
            groups.append(character)
    return Axes(tuple(groups))
