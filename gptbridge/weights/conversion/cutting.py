"""What part of each tensor the file of one rank holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gptbridge.errors import BadInput, printable
from gptbridge.weights.dialects.mindspore.strategies import TensorLayout
from gptbridge.weights.formats import TensorInfo, WeightFile
from gptbridge.weights.layouts.axes import CUT
from gptbridge.weights.layouts.boxes import CutBox, cut_boxes
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
        """Return the boxes of the tensor's letters that rank `rank` of the stage holds."""


@dataclass(frozen=True, slots=True)
class Stage:
    """The files of one pipeline stage's ranks, the tensors to take from them, and how they are cut."""

    ranks: tuple[WeightFile, ...]
    names: tuple[str, ...]
    cutting: Cutting


@dataclass(frozen=True, slots=True)
class LetterCutting:
    """Each tensor is cut along its letter among n, f and v over `degree` ranks, as Megatron does.

    Ranks beyond `degree` hold copies: rank r has part r % degree. `uncut` are canonical weights that
    every rank holds whole.
    """

    degree: int
    where: Path
    uncut: frozenset[str] = frozenset()

    def _letter(self, native: NativeTensor) -> str | None:
        return None if native.canonical in self.uncut else native.axes.cut

    def whole_shape(self, native: NativeTensor, info: TensorInfo) -> tuple[int, ...]:
        """Return the shape that the parts of all ranks make together."""
        letter = self._letter(native)
        if letter is None or len(info.shape) != len(native.axes.groups):
            return info.shape
        return tuple(
            length * self.degree if letter in group else length
            for group, length in zip(native.axes.groups, info.shape, strict=True)
        )

    def boxes(self, rank: int, native: NativeTensor, sizes: Mapping[str, int]) -> list[CutBox]:
        """Return the one box that the rank holds."""
        box = {letter: (0, sizes[letter]) for letter in native.axes.letters}
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
            box[letter] = (index * share, (index + 1) * share)
        return [CutBox(box, (slice(None),) * len(native.axes.groups))]


@dataclass(frozen=True, slots=True)
class StrategyCutting:
    """Each tensor is cut as a MindSpore strategy file says; one that it does not name is whole."""

    layouts: Mapping[str, TensorLayout]
    where: Path

    @property
    def degree(self) -> int:
        """Over how many ranks the tensor that is cut most is cut, the optimizer's cuts left out."""
        return max((layout.degree for layout in self.layouts.values()), default=1)

    def _counts(self, native: NativeTensor) -> Sequence[int]:
        layout = self.layouts.get(native.name)
        return [count for _, count in layout.parts(0)] if layout else [1] * len(native.axes.groups)

    def whole_shape(self, native: NativeTensor, info: TensorInfo) -> tuple[int, ...]:
        """Return the shape that the parts of all ranks make together."""
        counts = self._counts(native)
        if len(counts) != len(info.shape):
            raise BadInput(
                f"{printable(native.name)} has shape {info.shape}, "
                f"but its strategy is for {len(counts)} dimensions",
                where=self.where,
            )
        return tuple(length * count for length, count in zip(info.shape, counts, strict=True))

    def boxes(self, rank: int, native: NativeTensor, sizes: Mapping[str, int]) -> list[CutBox]:
        """Return the boxes that the rank holds: several where a part begins or ends inside a head."""
        layout = self.layouts.get(native.name)
        parts = layout.parts(rank) if layout else [(0, 1)] * len(native.axes.groups)
        return list(cut_boxes(native.axes, list(self._ranges(native, parts, sizes)), sizes))

    def _ranges(
        self, native: NativeTensor, parts: Sequence[tuple[int, int]], sizes: Mapping[str, int]
    ) -> Iterator[tuple[int, int]]:
        for length, (index, count) in zip(native.axes.shape(sizes), parts, strict=True):
            share, rest = divmod(length, count)
            if rest:
                raise BadInput(
                    f"{printable(native.name)}: {length} cannot be cut into {count} parts", where=self.where
                )
            yield index * share, (index + 1) * share
