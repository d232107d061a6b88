"""What ranks exchange, as Cells of a graph: MindSpore's own collectives where a device has them.

A CPU knows AllReduce alone for every group: a gather there is a sum of parts beside zeros, a scatter is a
part of a sum, what is sent is added to zeros. In a graph it takes a tenth of what it takes outside. What is
native to Ascend is written by its documentation, and not run. The Cells have gradients of their own: those of
AllReduce would add up once more what all ranks already have whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import create_group

from gptbridge_mindspore.parallel import Cut


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
        size = x.shape[self.axis]
        return self.sum(beside_zeros(x, self.before * size, self.after * size, self.axis))


class Joined(nn.Cell):
    """Ranges of the last axis, of any lengths, one after the other: this rank has `part` of `size`."""

    def __init__(self, group: Group, part: range, size: int) -> None:
        super().__init__()
        self.before, self.after = part.start, size - part.stop
        self.sum = ops.AllReduce(group=group.name)

    def construct(self, x: Tensor) -> Tensor:
        """Return `size` entries along the last axis."""
        return self.sum(beside_zeros(x, self.before, self.after, len(x.shape) - 1))


def beside_zeros(x: Tensor, before: int, after: int, axis: int) -> Tensor:
    """Return x with as many zeros before and after it along an axis."""
    parts = (x,)
    if before > 0:
        parts = (ops.zeros((*x.shape[:axis], before, *x.shape[axis + 1 :]), x.dtype), x)  # type: ignore[assignment]
    if after > 0:
        parts = (*parts, ops.zeros((*x.shape[:axis], after, *x.shape[axis + 1 :]), x.dtype))  # type: ignore[assignment]
    return x if len(parts) == 1 else ops.concat(parts, axis)


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


class Enter(nn.Cell):
    """Where a tensor that all ranks have enters what each has a part of: their gradients add up."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.sum = AllReduce(group)

    def construct(self, x: Tensor) -> Tensor:
        """Return x."""
        return x

    def bprop(self, x: Tensor, out: Tensor, dy: Tensor) -> tuple[Tensor]:
        """Return the gradient of x."""
        return (self.sum(dy),)


class Leave(nn.Cell):
    """Where what ranks computed from their parts becomes a tensor that all have: their sum."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.sum = AllReduce(group)

    def construct(self, x: Tensor) -> Tensor:
        """Return the sum."""
        return self.sum(x)

    def bprop(self, x: Tensor, out: Tensor, dy: Tensor) -> tuple[Tensor]:
        """Return the gradient of x."""
        return (dy,)


class EnterSequence(nn.Cell):
    """The same where each rank has some tokens of a sample: they are gathered, and gradients come apart."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.gather, self.scatter = AllGather(group, TOKENS), ReduceScatter(group, TOKENS)

    def construct(self, x: Tensor) -> Tensor:
        """Return all tokens."""
        return self.gather(x)

    def bprop(self, x: Tensor, out: Tensor, dy: Tensor) -> tuple[Tensor]:
        """Return the gradient of this rank's tokens."""
        return (self.scatter(dy),)


class LeaveSequence(nn.Cell):
    """The same where each rank is to have some tokens of a sample."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.gather, self.scatter = AllGather(group, TOKENS), ReduceScatter(group, TOKENS)

    def construct(self, x: Tensor) -> Tensor:
        """Return this rank's tokens."""
        return self.scatter(x)

    def bprop(self, x: Tensor, out: Tensor, dy: Tensor) -> tuple[Tensor]:
        """Return the gradient of x."""
        return (self.gather(dy),)


TOKENS = 1  # the axis of (B, T, H)


def same(x: Tensor) -> Tensor:
    """Return x: nothing is exchanged with nobody."""
    return x


def enter(cut: Cut) -> Callable[[Tensor], Tensor]:
    """Return what a tensor (B, T, H) goes through before a layer of which each rank has some outputs."""
    if cut.group is None:
        return same
    return EnterSequence(cut.group) if cut.sequence else Enter(cut.group)


def leave(cut: Cut) -> nn.Cell | None:
    """Return what a tensor (B, T, H) goes through after a layer of which each rank has some inputs."""
    if cut.group is None:
        return None
    return LeaveSequence(cut.group) if cut.sequence else Leave(cut.group)


def all_reduce_each(tensors: Sequence[Tensor], group: Group | None) -> list[Tensor]:
    """Return the sums of the ranks' tensors."""
    return list(tensors) if group is None else list(_summing(group)(*tensors))


@cache  # layouts of the same ranks share what was compiled
def _summing(group: Group) -> Callable[..., tuple[Tensor, ...]]:
    return ms.jit(AllReduceEach(group))  # type: ignore[no-any-return]


@cache  # outside a graph it takes twelve times as long: 25 ms of CPU time
def _gathering(group: Group) -> Callable[[Tensor], Tensor]:
    return ms.jit(AllGather(group))  # type: ignore[no-any-return]


def send(x: Tensor, pair: Group) -> None:
    """Send a tensor to the other rank of a pair, which receives it at the same time."""
    if pair.native:
        ops.Send(0, 1 - pair.index, group=pair.name)(x)
    else:
        all_reduce_each([x], pair)


def receive(shape: tuple[int, ...], pair: Group) -> Tensor:
    """Return the tensor that the other rank of a pair sends."""
    if pair.native:
        return ops.Receive(0, 1 - pair.index, list(shape), ms.float32, group=pair.name)()
    return all_reduce_each([ops.zeros(shape)], pair)[0]


def total(values: Sequence[float], group: Group | None) -> list[float]:
    """Return the sums over the ranks, as exact as Python's own: collectives carry fp32 alone."""
    if group is None:
        return list(values)
    rest, parts = np.array(values, np.float64), []
    for _ in range(3):  # 24 bits each of the 53
        parts.append(rest.astype(np.float32))
        rest = np.where(np.isfinite(rest), rest - parts[-1], 0)
    gathered = _gathering(group)(Tensor(np.stack(parts)[None])).asnumpy()
    return [float(value) for value in gathered.astype(np.float64).sum(1).sum(0)]
