"""How MindSpore cuts a tensor over devices, as mindspore.transform_checkpoints undoes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MAX_DEVICES = 1 << 20


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """How one tensor is cut over the devices of a pipeline stage.

    `devices` is the device matrix, ranks counted row-major. `cuts` holds, for each dimension of the
    tensor, the axes of that matrix which cut it, the outermost first. The optimizer may cut dimension 0
    once more into `shard_size` parts (-1: over all devices that would hold copies), `shard_step` ranks apart.
    """

    devices: tuple[int, ...]
    cuts: tuple[tuple[int, ...], ...]
    shard_step: int = 0
    shard_size: int = 0

    @property
    def num_devices(self) -> int:
        """How many ranks the stage has."""
        return math.prod(self.devices)

    @property
    def degree(self) -> int:
        """Over how many ranks the tensor is cut, without the optimizer's cut."""
        return math.prod(self.devices[axis] for cut in self.cuts for axis in cut)

    def parts(self, rank: int) -> list[tuple[int, int]]:
        """Return (index, count) for each dimension: the rank holds part `index` of `count` equal ones."""
        place: list[int] = []
        for size in reversed(self.devices):
            rank, coordinate = divmod(rank, size)
            place.insert(0, coordinate)
        parts = [self._number(place, cut) for cut in self.cuts]
        if self.is_sharded:
            shards = self._num_shards()
            index, count = parts[0]
            copy, _ = self._number(place, self._copies)
            parts[0] = (index * shards + copy % shards, count * shards)
        return parts

    @property
    def is_sharded(self) -> bool:
        """The optimizer cuts dimension 0."""
        return bool(self.cuts and self.shard_step and self.shard_size)

    def describe_problem(self) -> str | None:
        """Return why this cut cannot be undone, or None."""
        if self.num_devices > MAX_DEVICES:
            return f"it is cut over {self.num_devices} devices"
        if self.is_sharded:
            held = math.prod(self.devices[axis] for axis in self._copies)
            shards = self._num_shards()
            stride = math.prod(self.devices[self._copies[-1] + 1 :]) if self._copies else 0
            if self.shard_size < -1 or held % shards or stride != self.shard_step:
                return (
                    f"the optimizer cuts it into {self.shard_size}, {self.shard_step} ranks apart, "
                    f"which devices {list(self.devices)} do not allow"
                )
        return None

    def _number(self, place: Sequence[int], cut: Sequence[int]) -> tuple[int, int]:
        index, count = 0, 1
        for axis in cut:
            index, count = index * self.devices[axis] + place[axis], count * self.devices[axis]
        return index, count

    @property
    def _copies(self) -> tuple[int, ...]:
        """The axes whose ranks would hold copies, were it not for the optimizer."""
        used = {axis for cut in self.cuts for axis in cut}
        return tuple(axis for axis, size in enumerate(self.devices) if size > 1 and axis not in used)

    def _num_shards(self) -> int:
        return self.shard_size if self.shard_size > 0 else math.prod(self.devices[x] for x in self._copies)


Strategy = Mapping[int, Mapping[str, TensorLayout]]  # pipeline stage -> tensor -> layout
