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
from gptbridge.weights.layouts.boxes import CutBox, cut_boxes, whole_boxes
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
    """Each tensor is cut along its letter among m, f and v over `degree` ranks, as Megatron does.

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
        return [count for _, count in layout.parts(0)] if layout else [1] * native.axes.num_dims

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
        parts = layout.parts(rank) if layout else [(0, 1)] * native.axes.num_dims
        ranges = list(self._ranges(native, parts, sizes))
        if len(native.axes.parts) == 1:
            return list(cut_boxes(native.axes.parts[0], ranges, sizes))
        if any(count > 1 for _, count in parts):
            raise BadInput(
                f"{printable(native.name)} is cut, and holds q, k and v together", where=self.where
            )
        return [CutBox(whole_boxes(native.axes, sizes), (slice(None),) * native.axes.num_dims)]

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
