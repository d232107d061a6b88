"""What ranks exchange, on torch.distributed: gloo, nccl and hccl alike.

A group of None is one rank, alone.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

SUM, MAX = dist.ReduceOp.SUM, dist.ReduceOp.MAX


def all_reduce(x: Tensor, group: ProcessGroup | None, operation: dist.ReduceOp.RedOpType = SUM) -> Tensor:
    """Make `x`, contiguous, its sum (or maximum) over the ranks, in place; return it."""
    if group is not None:
        dist.all_reduce(x, operation, group)
    return x


def all_reduce_each(tensors: Iterable[Tensor], group: ProcessGroup | None) -> None:
    """Make each tensor its sum over the ranks, in place; they are on the way together."""
    if group is not None:
        works = [dist.all_reduce(tensor, SUM, group, async_op=True) for tensor in tensors]
        for work in works:
            work.wait()
