"""Sharding: each rank trains some rows of every tensor.

Stage 1: gradients are whole until the step's end, then each rank keeps the sum for its rows. Stage 2: that
happens after each use. Stage 3: weights are cut too, and gathered for each use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import paddle
from paddle import Tensor, nn
from paddle.autograd import PyLayer, saved_tensors_hooks

from gptbridge.process.place import chunk
from gptbridge_paddle.collectives import all_gather, reduce_scatter
from gptbridge_paddle.groups import Group


@dataclass(frozen=True, slots=True)
class Sharding:
    """Which ranks share weights, and how far: at stage 0 nothing is shared."""

    group: Group | None = None
    stage: int = 0

    def cuts(self, rows: int) -> list[tuple[int, int]]:
        """Return [start, stop) of the rows that each rank trains."""
        size = self.group.size if self.group else 1
        return [chunk(rows, size, rank) for rank in range(size)]

    def lengths(self, rows: int) -> list[int]:
        """Return how many rows each rank trains."""
        return [stop - start for start, stop in self.cuts(rows)]


def sharded(layer: nn.Layer, sharding: Sharding, recomputed: str | None = None) -> nn.Layer:
    """Return the layer, its parameters and those of the layers in it shared as the stage says.

    `recomputed` is the layer in it ("" for all) that keeps nothing for the backward pass anyway.
    """
    if sharding.group is None or not sharding.stage:
        return layer
    for name, part in layer.named_sublayers(include_self=True):
        if part._parameters:
            _share(part, sharding, sharding.group.rank)
            part.regathers = sharding.stage == 3 and (recomputed is None or not name.startswith(recomputed))
    return layer


def _share(layer: nn.Layer, sharding: Sharding, rank: int) -> None:
    rows = {name: parameter.shape[0] for name, parameter in layer._parameters.items()}
    for name, parameter in layer._parameters.items():
        start, stop = sharding.cuts(rows[name])[rank]
        if sharding.stage == 3:
            shape, zeros = [stop - start, *parameter.shape[1:]], nn.initializer.Constant(0.0)
            layer._parameters[name] = paddle.create_parameter(
                shape, parameter.dtype, default_initializer=zeros
            )
        else:
            parameter.own_rows = parameter._slice(start, stop)  # the same memory
            parameter.own_rows.stop_gradient = False
    if sharding.stage > 1:
        kind: Any = type(layer)
        layer.__class__ = _gathering(kind)
        layer.sharding, layer.rows, layer.used = sharding, rows, None


def trained(parameter: Tensor) -> Tensor:
    """Return what this rank trains of a parameter."""
    return getattr(parameter, "own_rows", parameter)


def reduce_gradient(parameter: Tensor, sharding: Sharding) -> None:
    """Leave the sum of the ranks' gradients to the rows that this rank trains, where it is not there yet."""
    if parameter.grad is not None and trained(parameter) is not parameter:
        lengths = sharding.lengths(parameter.shape[0])
        trained(parameter).grad = reduce_scatter(parameter.grad, sharding.group, 0, lengths)
        parameter.grad = None  # clear_gradient would keep its memory


def spread(parameters: Iterable[Tensor], sharding: Sharding) -> None:
    """Give every rank the rows that the others have trained."""
    for parameter in parameters:
        if trained(parameter) is not parameter:
            lengths = sharding.lengths(parameter.shape[0])
            paddle.assign(all_gather(trained(parameter), sharding.group, 0, lengths), parameter)


class _Gathering(nn.Layer):
    """A layer each of whose parameters is gathered when it is used, and once more for the backward pass."""

    sharding: Sharding
    rows: dict[str, int]
    regathers: bool
    used: dict[int, tuple[str, Tensor]] | None  # during a call, what was gathered for it, by address

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if name not in self._parameters:
            return found
        own = trained(found)
        gather = found.detach if own is not found else partial(self._gather, name)
        whole = _Gather.apply(own, gather, self.sharding.group, self.sharding.lengths(self.rows[name]))
        if self.used is not None:
            self.used[whole.data_ptr()] = name, whole
        return whole

    def __call__(self, *inputs: Any) -> Any:
        if not self.regathers:
            return super().__call__(*inputs)
        self.used = {}
        with saved_tensors_hooks(self._forget, self._find):
            result = super().__call__(*inputs)
        self.used = None
        return result

    def _gather(self, name: str) -> Tensor:
        lengths = self.sharding.lengths(self.rows[name])
        return all_gather(self._parameters[name], self.sharding.group, 0, lengths)

    def _forget(self, kept: Tensor) -> Tensor | str:
        """Return what is kept for the backward pass: of a weight its name."""
        found = self.used and self.used.get(kept.data_ptr())
        return found[0] if found else kept.detach()  # what made it would keep itself alive

    def _find(self, kept: Tensor | str) -> Tensor:
        return self._gather(kept) if isinstance(kept, str) else kept


@cache
def _gathering(kind: Any) -> type[nn.Layer]:
    return type(f"Gathering{kind.__name__}", (_Gathering, kind), {})


class _Gather(PyLayer):
    """The whole tensor of which `own` are this rank's rows; its gradient is summed over the ranks."""

    @staticmethod
    def forward(
        ctx: Any, own: Tensor, gather: Callable[[], Tensor], group: Group, lengths: list[int]
    ) -> Tensor:
        ctx.group, ctx.lengths = group, lengths
        return gather()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return reduce_scatter(gradient, ctx.group, 0, ctx.lengths)
