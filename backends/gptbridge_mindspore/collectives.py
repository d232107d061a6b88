"""What ranks exchange, as Cells of a graph: MindSpore's own collectives where a device has them.

A CPU knows AllReduce alone for every group: a gather there is a sum of parts beside zeros, a scatter is a
part of a sum. In a graph it takes a tenth of what it takes outside. Collectives pass gradients by their own
rules: the native ones sum a gradient again where all ranks already have the whole of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import create_group


@dataclass(frozen=True, slots=True)
class Group:
    """Ranks that exchange tensors; this one is number `index` of them."""

    name: str
    ranks: tuple[int, ...]
    index: int
    native: bool  # the device gathers, scatters and sends by itself

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return len(self.ranks)


@cache  # layouts of the same ranks share them
def group_of(ranks: tuple[int, ...], rank: int, *, native: bool) -> Group:
    """Return the group of `ranks`, which its members alone make."""
    name = "-".join(map(str, ranks))
    create_group(name, list(ranks))
    return Group(name, ranks, ranks.index(rank), native)


class AllReduce(nn.Cell):
    """The sum of the ranks' tensors."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.sum = ops.AllReduce(group=group.name)

    def construct(self, x: Tensor) -> Tensor:
        """Return a tensor of the shape of x."""
        return self.sum(x)


class AllReduceEach(nn.Cell):
    """The sums of several tensors, in one graph."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.sum = ops.AllReduce(group=group.name)
        self.each = ops.HyperMap()

    def construct(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return tensors of the same shapes."""
        return self.each(self.sum, tensors)  # type: ignore[no-any-return]


class AllGather(nn.Cell):
    """The tensors of the ranks, of one shape, one after the other along an axis."""

    def __init__(self, group: Group, axis: int = 0) -> None:
        super().__init__()
        self.axis = axis
        self.before, self.after = group.index, group.size - 1 - group.index
        self.native = ops.AllGather(group=group.name) if group.native else None
        self.sum = ops.AllReduce(group=group.name)

    def construct(self, x: Tensor) -> Tensor:
        """Return as many times the entries of x along the axis."""
        if self.native is not None:
            return self.native(x.swapaxes(0, self.axis)).swapaxes(0, self.axis)
        nothing = ops.zeros(x.shape, x.dtype)
        return self.sum(ops.concat((*(nothing,) * self.before, x, *(nothing,) * self.after), self.axis))


class ReduceScatter(nn.Cell):
    """This rank's part, along an axis, of the sum of the ranks' tensors."""

    def __init__(self, group: Group, axis: int = 0) -> None:
        super().__init__()
        self.axis, self.index = axis, group.index
        self.native = ops.ReduceScatter(group=group.name) if group.native else None
        self.sum = ops.AllReduce(group=group.name)
        self.parts = ops.Split(axis, group.size)

    def construct(self, x: Tensor) -> Tensor:
        """Return one of the equal parts of x."""
        if self.native is not None:
            return self.native(x.swapaxes(0, self.axis)).swapaxes(0, self.axis)
        return self.parts(self.sum(x))[self.index]


def total(values: Sequence[float], group: Group | None) -> list[float]:
    """Return the sums over the ranks, as exact as Python's own: collectives carry fp32 alone."""
    if group is None:
        return list(values)
    rest, parts = np.array(values, np.float64), []
    for _ in range(3):  # 24 bits each of the 53
        parts.append(rest.astype(np.float32))
        rest = np.where(np.isfinite(rest), rest - parts[-1], 0)
    gathered = AllGather(group)(Tensor(np.stack(parts)[None])).asnumpy()
    return [float(value) for value in gathered.astype(np.float64).sum(1).sum(0)]
