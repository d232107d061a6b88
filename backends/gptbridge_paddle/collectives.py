"""What ranks exchange, on paddle.distributed: gloo and NCCL alike.

A group of None is one rank, alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from itertools import accumulate
from typing import Any

import paddle
import paddle.distributed as dist
from paddle import Tensor
from paddle.autograd import PyLayer

from gptbridge.process import groups
from gptbridge_paddle.groups import Group

Cut = groups.Cut[Group]
SUM, MAX = dist.ReduceOp.SUM, dist.ReduceOp.MAX
BUCKET = 2**18  # numbers that travel together


def meet(*groups: Group | None) -> None:
    """Wait until the ranks of each group are here, however long the others still compute."""
    for group in groups:
        if group is not None and paddle.get_device() == "cpu":  # NCCL waits by itself
            group.meet()


def all_reduce(x: Tensor, group: Group | None, operation: int = SUM) -> Tensor:
    """Make `x`, contiguous, its sum (or maximum) over the ranks, in place; return it."""
    if group is not None:
        dist.all_reduce(x, operation, group.handle)
    return x


def all_reduce_each(tensors: Iterable[Tensor], group: Group | None) -> None:
    """Make each tensor its sum over the ranks, in place; small ones travel together."""
    if group is None:
        return
    bucket: list[Tensor] = []
    for x in sorted(tensors, key=lambda x: int(x.size)):  # a stable order: the ranks agree on it
        if bucket and sum(int(other.size) for other in bucket) + x.size > BUCKET:
            _all_reduce_bucket(bucket, group)
            bucket = []
        bucket.append(x)
    if bucket:
        _all_reduce_bucket(bucket, group)


def all_gather(x: Tensor, group: Group | None, axis: int, lengths: Sequence[int]) -> Tensor:
    """Return every rank's `x` in order along `axis`, of which rank n has `lengths[n]` entries."""
    if group is None:
        return x
    parts: list[Tensor] = []
    dist.all_gather(parts, _padded(x, max(lengths), axis), group.handle)
    if min(lengths) < max(lengths):
        parts = [_cut(part, 0, length, axis) for part, length in zip(parts, lengths, strict=True)]
    return paddle.concat(parts, axis)


def reduce_scatter(x: Tensor, group: Group | None, axis: int, lengths: Sequence[int]) -> Tensor:
    """Return this rank's entries along `axis` of the sum of every rank's `x`; rank n has `lengths[n]`."""
    if group is None:
        return x
    stops = list(accumulate(lengths))
    parts = [_cut(x, stop - length, stop, axis) for stop, length in zip(stops, lengths, strict=True)]
    if x.place.is_cpu_place():  # gloo has none: each part is reduced to its rank
        for rank, part in zip(group.ranks, parts, strict=True):
            if part.size:
                dist.reduce(part, rank, group=group.handle)
        return parts[group.rank]
    padded = [_padded(part, max(lengths), axis) for part in parts]
    mine = paddle.empty_like(padded[0])
    dist.reduce_scatter(mine, padded, group=group.handle)
    return _cut(mine, 0, lengths[group.rank], axis)


def send(x: Tensor, group: Group) -> Future[Any]:
    """Send `x` to the other rank of a pair, in the order of the calls; return what waits for it.

    With gloo a send lasts until the other rank receives: it does so in a thread of the pair's own.
    """
    x = x.detach().contiguous()

    def deliver() -> None:
        meet(group)
        dist.send(x, group.peer, group.handle)

    return group.sender.submit(deliver)


def receive(shape: Sequence[int], group: Group) -> Tensor:
    """Return the fp32 tensor of `shape` that the other rank of a pair sends."""
    x = paddle.empty(list(shape), "float32")
    meet(group)
    dist.recv(x, group.peer, group.handle)
    return x


def enter(x: Tensor, cut: Cut) -> Tensor:
    """Return the whole stream (B, T, H) for a region of which each rank computes its part."""
    if cut.group is None:
        return x
    if cut.length is None:
        return _Enter.apply(x, cut.group)
    return _EnterSequence.apply(x, cut.group, cut.lengths(cut.length))


def leave(x: Tensor, cut: Cut) -> Tensor:
    """Return the sum of the ranks' results (B, T, H): the whole stream, or this rank's part of it."""
    if cut.group is None:
        return x
    if cut.length is None:
        return _Leave.apply(x, cut.group)
    return _LeaveSequence.apply(x, cut.group, cut.lengths(cut.length))


class _Enter(PyLayer):
    """Nothing forward; backward, the gradient is what the ranks' parts add up to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce(gradient.clone(), ctx.group)


class _Leave(PyLayer):
    """The sum over the ranks forward; nothing backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        return all_reduce(x.clone(), group)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clone()


class _EnterSequence(PyLayer):
    """All positions forward; backward, this rank's part of the summed gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, lengths: list[int]) -> Tensor:
        ctx.group, ctx.lengths = group, lengths
        return all_gather(x, group, 1, lengths)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return reduce_scatter(gradient, ctx.group, 1, ctx.lengths)


class _LeaveSequence(PyLayer):
    """This rank's part of the sum forward; backward, the gradient of all positions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group, lengths: list[int]) -> Tensor:
        ctx.group, ctx.lengths = group, lengths
        return reduce_scatter(x, group, 1, lengths)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_gather(gradient, ctx.group, 1, ctx.lengths)


def _all_reduce_bucket(tensors: list[Tensor], group: Group) -> None:
    if len(tensors) == 1:
        all_reduce(tensors[0], group)
        return
    whole = all_reduce(paddle.concat([x.flatten() for x in tensors]), group)
    for x, summed in zip(tensors, paddle.split(whole, [x.size for x in tensors]), strict=True):
        paddle.assign(summed.reshape(x.shape), x)


def _cut(x: Tensor, start: int, stop: int, axis: int) -> Tensor:
    """Return entries [start, stop) along `axis`, in memory of their own."""
    return paddle.slice(x, [axis], [start], [stop]).clone()


def _padded(x: Tensor, size: int, axis: int) -> Tensor:
    """Return x with zeros behind it up to `size` entries along `axis`."""
    missing = list(x.shape)
    missing[axis] = size - x.shape[axis]
    return paddle.concat([x, paddle.zeros(missing, x.dtype)], axis) if missing[axis] else x.contiguous()
