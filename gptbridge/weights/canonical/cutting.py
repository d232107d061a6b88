"""What part of each tensor the file of one rank holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gptbridge.errors import BadInput, printable
from gptbridge.weights.formats import TensorInfo, WeightFile
from gptbridge.weights.layouts.axes import CUT
from gptbridge.weights.layouts.boxes import CutBox, whole_boxes
from gptbridge.weights.layouts.rules import NativeTensor

_MEANING = dict(zip(CUT, ("attention heads", "feed-forward width", "vocabulary rows"), strict=True))


class Cutting(Protocol):
    """How the tensors of a pipeline stage are cut over its ranks. BadInput where they cannot be."""

    @property
    def degree(self) -> int:
        """Over how many ranks tensors are cut."""

    def whole_shape(self, native: NativeTensor, info: TensorInfo) -> tuple[int, ...]:
        """Return the shape that the parts of all ranks make together; `info` is one rank's."""

    def boxes(self, rank: int, native: NativeTensor, sizes: Mapping[str, int]) -> list[CutBox]:
        """Return the boxes of the tensor's parts that rank `rank` of the stage holds."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The files of one pipeline stage's ranks, the tensors to take from them, and how they are cut."""

    ranks: tuple[WeightFile, ...]
    names: tuple[str, ...]
    cutting: Cutting


@dataclass(frozen=True, slots=True)
class LetterCutting:
    """Each tensor is cut along its letter among m, f and v over `degree` ranks.

    Ranks beyond `degree` hold copies: rank r has part r % degree. `uncut` are canonical weights that
    every rank holds whole.
    """

    degree: int
    where: Path
    uncut: frozenset[str] = frozenset()

    def _letter(self, native: NativeTensor) -> str | None:
        return None if native.canonicals[0] in self.uncut else native.axes.cut

    def whole_shape(self, native: NativeTensor, info: TensorInfo) -> tuple[int, ...]:
        """Return the shape that the parts of all ranks make together."""
        letter = self._letter(native)
        if letter is None or len(info.shape) != native.axes.num_dims:
            return info.shape
        cut = native.axes.dim_of(letter)
        return tuple(
            length * self.degree if number == cut else length for number, length in enumerate(info.shape)
        )

    def boxes(self, rank: int, native: NativeTensor, sizes: Mapping[str, int]) -> list[CutBox]:
        """Return the one box of each part that the rank holds."""
        boxes = whole_boxes(native.axes, sizes)
        letter = self._letter(native)
        if letter is not None:
            share, rest = divmod(sizes[letter], self.degree)
            if rest:
                raise BadInput(
                    f"{printable(native.name)}: {sizes[letter]} ({_MEANING[letter]}) "
                    f"cannot be cut for {self.degree} ranks",
                    where=self.where,
                )
            index = rank % self.degree
            held = (index * share, (index + 1) * share)
            boxes = tuple({**box, letter: held} for box in boxes)
        return [CutBox(boxes, (slice(None),) * native.axes.num_dims)]
