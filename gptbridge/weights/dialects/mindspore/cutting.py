"""Cutting as a strategy file says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptbridge.errors import BadInput, printable
from gptbridge.weights.dialects.mindspore.strategies import TensorLayout
from gptbridge.weights.formats import TensorInfo
from gptbridge.weights.layouts.boxes import CutBox, cut_boxes, whole_boxes
from gptbridge.weights.layouts.rules import NativeTensor


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
