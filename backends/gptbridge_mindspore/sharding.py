"""Rows of tensors that the ranks of a sharding group share: equal parts, the last ones filled up with zeros.

Shapes: n rows, of which each of S ranks holds the next ceil(n / S).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from gptbridge_mindspore.collectives import AllGather, Group, ReduceScatter, beside_zeros


@dataclass(frozen=True, slots=True)
class Rows:
    """This rank's rows of a tensor: the first `count` of those that `tensor` holds."""

    tensor: Tensor
    count: int


class PartEach(nn.Cell):
    """This rank's rows of whole tensors; of their sums over the ranks, if that is asked for."""

    def __init__(self, group: Group, *, summed: bool) -> None:
        super().__init__()
        self.size, self.index = group.size, group.index
        self.scatter = ReduceScatter(group) if summed else None
        self.parts = ops.Split(0, group.size)

    def construct(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Return slices."""
        slices = ()
        for x in tensors:
            filled = beside_zeros(x, 0, -x.shape[0] % self.size, 0)
            mine = self.parts(filled)[self.index] if self.scatter is None else self.scatter(filled)
            slices = (*slices, mine)  # type: ignore[assignment]
        return slices


class Fill(nn.Cell):
    """Whole weights from the slices of all ranks; without a group, from others of their shapes."""

    def __init__(self, group: Group | None, weights: Sequence[Parameter]) -> None:
        super().__init__()
        self.weights = ParameterTuple(list(weights))
        self.counts = tuple(weight.shape[0] for weight in weights)
        self.gather = None if group is None else AllGather(group)

    def construct(self, *tensors: Tensor) -> Tensor:
        """Fill the weights; return something."""
        for n in range(len(tensors)):
            whole = tensors[n] if self.gather is None else self.gather(tensors[n])[: self.counts[n]]
            ops.assign(self.weights[n], whole)
        return tensors[0].sum()


def height(rows: int, group: Group) -> int:
    """Return how many rows a slice of `rows` holds."""
    return -(-rows // group.size)


def scatter_each(tensors: Sequence[Tensor], group: Group) -> list[Tensor]:
    """Return this rank's slices of the sums of the ranks' tensors."""
    return list(_parts(group, summed=True)(*tensors))


@cache
def _parts(group: Group, *, summed: bool) -> Callable[..., tuple[Tensor, ...]]:
    return ms.jit(PartEach(group, summed=summed))  # type: ignore[no-any-return]


class Slices:
    """The rows of whole weights that this rank updates."""

    def __init__(self, group: Group, weights: Mapping[str, Parameter]) -> None:
        self._group, self._weights = group, list(weights.values())
        self.parameters = {
            name: Parameter(ops.zeros((height(len(weight), group), *weight.shape[1:])), name=f"{name}.rows")
            for name, weight in weights.items()
        }
        self._fill = ms.jit(Fill(group, self._weights))

    def take(self) -> None:
        """Fill the slices from the weights."""
        rows = _parts(self._group, summed=False)(*self._weights)
        for mine, found in zip(self.parameters.values(), rows, strict=True):
            ops.assign(mine, found)

    def spread(self) -> None:
        """Fill the weights from all ranks' slices."""
        self._fill(*self.parameters.values())
