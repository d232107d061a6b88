"""What ranks exchange, on torch.distributed: gloo, nccl and hccl alike.

A group of None is one rank, alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from gptbridge.process import groups

Cut = groups.Cut[ProcessGroup]
SUM, MAX = dist.ReduceOp.SUM, dist.ReduceOp.MAX


def all_reduce(x: Tensor, group: ProcessGroup | None, operation: dist.ReduceOp.RedOpType = SUM) -> Tensor:
    """Make `x`, contiguous, its sum (or maximum) over the ranks, in place; return it."""
    if group is not None:
        dist.all_reduce(x, operation, group)
    return x


def all_gather(x: Tensor, group: ProcessGroup | None, dim: int, lengths: Sequence[int]) -> Tensor:
    """Return the ranks' tensors joined along `dim`, of which rank n's has `lengths[n]` entries."""
    if group is None:
        return x
    part = _padded(x, dim, max(lengths))
    found = part.new_empty((len(lengths) * len(part), *part.shape[1:]))
    dist.all_gather_into_tensor(found, part, group)
    parts = zip(found.chunk(len(lengths)), lengths, strict=True)
    return torch.cat([part.narrow(dim, 0, length) for part, length in parts], dim)


def reduce_scatter(x: Tensor, group: ProcessGroup | None, dim: int, lengths: Sequence[int]) -> Tensor:
    """Return this rank's part of the ranks' sum of `x`: along `dim`, rank n has `lengths[n]` entries."""
    if group is None:
        return x
    split = torch.split(x, list(lengths), dim)
    parts = torch.cat([_padded(part, dim, max(lengths)) for part in split])
    mine = parts.new_empty((len(parts) // len(lengths), *parts.shape[1:]))
    dist.reduce_scatter_tensor(mine, parts, SUM, group)
    return mine.narrow(dim, 0, lengths[dist.get_rank(group)])


def send(x: Tensor, group: ProcessGroup, to: int) -> None:
    """Give `x` to the rank that is number `to` of the group, and wait until it is on the way."""
    dist.send(x.contiguous(), group=group, group_dst=to)


def receive(x: Tensor, group: ProcessGroup, source: int) -> Tensor:
    """Fill `x` with what rank `source` of the group sends; return it."""
    dist.recv(x, group=group, group_src=source)
    return x


def broadcast(x: Tensor, group: ProcessGroup, source: int) -> Tensor:
    """Fill `x` with what rank `source` of the group has there; return it."""
    dist.broadcast(x, group=group, group_src=source)
    return x


def _padded(x: Tensor, dim: int, length: int) -> Tensor:
    if x.shape[dim] == length:
        return x.contiguous()
    shape = list(x.shape)
    shape[dim] = length - shape[dim]
    return torch.cat([x, x.new_zeros(shape)], dim)


def all_reduce_each(tensors: Iterable[Tensor], group: ProcessGroup | None) -> None:
    """Make each tensor its sum over the ranks, in place; they are on the way together."""
    if group is not None:
        works = [dist.all_reduce(tensor, SUM, group, async_op=True) for tensor in tensors]
        for work in works:
            work.wait()


def enter(x: Tensor, cut: Cut) -> Tensor:
    """Return the whole stream (B, T, H) for a region of which each rank computes its part."""
    if cut.group is None:
        return x
    if cut.length is None:
        return _Enter.apply(x, cut.group)  # type: ignore[no-any-return, no-untyped-call]
    return _EnterSequence.apply(x, cut.group, cut.lengths(cut.length))  # type: ignore[no-any-return, no-untyped-call]


def leave(x: Tensor, cut: Cut) -> Tensor:
    """Return the sum of the ranks' results (B, T, H): the whole stream, or this rank's part of it."""
    if cut.group is None:
        return x
    if cut.length is None:
        return _Leave.apply(x, cut.group)  # type: ignore[no-any-return, no-untyped-call]
    return _LeaveSequence.apply(x, cut.group, cut.lengths(cut.length))  # type: ignore[no-any-return, no-untyped-call]


class _Enter(torch.autograd.Function):
    """Nothing forward; backward, the gradient is what the ranks' parts add up to."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduce(grad.clone(memory_format=torch.contiguous_format), ctx.group), None


class _Leave(torch.autograd.Function):
    """The sum over the ranks forward; nothing backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup) -> Tensor:
        return all_reduce(x.clone(memory_format=torch.contiguous_format), group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _EnterSequence(torch.autograd.Function):
    """All positions forward; backward, this rank's part of the summed gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup, lengths: list[int]) -> Tensor:
        ctx.group, ctx.lengths = group, lengths
        return all_gather(x, group, 1, lengths)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return reduce_scatter(grad, ctx.group, 1, ctx.lengths), None, None


class _LeaveSequence(torch.autograd.Function):
    """This rank's part of the sum forward; backward, the gradient of all positions."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup, lengths: list[int]) -> Tensor:
        ctx.group, ctx.lengths = group, lengths
        return reduce_scatter(x, group, 1, lengths)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return all_gather(grad, ctx.group, 1, ctx.lengths), None, None
