"""LoRA beside the linear layers of MindSpore: (x A^T) B^T, scaled, is added to what a layer returns.

Shapes: B samples, T tokens, R = B T rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from gptbridge.weights.layouts.gpt2 import adapted_in
from gptbridge_specs.run import LoraSpec


class NoAdapters(nn.Cell):
    """Beside a layer that has none."""

    masks = 0

    def construct(self, x: Tensor, y: Tensor, *mask: Tensor) -> Tensor:
        """Return y."""
        return y


class Pair(nn.Cell):
    """The two factors: A (rank, in) and B (out, rank)."""

    def __init__(self, inputs: int, outputs: int, rank: int, dtype: Any) -> None:
        super().__init__()
        self.lora_a = Parameter(Tensor(np.zeros((rank, inputs), np.float32)))
        self.lora_b = Parameter(Tensor(np.zeros((outputs, rank), np.float32)))
        self.dtype = dtype
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, rows: Tensor) -> Tensor:
        """Return (R, out) of (R, in)."""
        inner = self.product(rows.astype(self.dtype), self.lora_a.astype(self.dtype))
        return self.product(inner, self.lora_b.astype(self.dtype)).astype(ms.float32)


class Adapters(nn.Cell):
    """Pairs for some of the `parts` that lie side by side in a layer's output, one dropout before all."""

    def __init__(
        self,
        parts: tuple[str, ...],
        lora: LoraSpec,
        shape: tuple[int, int],
        dtype: Any,
        drop: Callable[[float], nn.Cell],
    ) -> None:
        super().__init__()
        inputs, width = shape[0], shape[1] // len(parts)
        self.drop = drop(lora.dropout)
        self.masks = int(lora.dropout > 0)  # how many it takes in training
        self.scale = lora.alpha / lora.rank
        self.split = ops.Split(-1, len(parts))
        held: dict[str, nn.Cell] = {
            part: Pair(inputs, width, lora.rank, dtype) for part in parts if part in lora.targets
        }
        for part, pair in held.items():
            self.insert_child_to_cell(part, pair)  # its weights have names as in the other backends
        self.pairs = tuple(held.get(part, NoAdapters()) for part in parts)
        self.present = tuple(part in held for part in parts)

    def construct(self, x: Tensor, y: Tensor, *mask: Tensor) -> Tensor:
        """Return y (B, T, out) and the change that x (B, T, in) makes to it."""
        rows = self.drop(x, *mask).reshape(-1, x.shape[-1])
        held = self.split(y.reshape(-1, y.shape[-1]))
        changed = ()
        for n in range(len(self.present)):
            part = held[n]
            if self.present[n]:
                part = part + self.pairs[n](rows) * self.scale
            changed = (*changed, part)  # type: ignore[assignment]
        return ops.concat(changed, -1).reshape(y.shape)


def adapt(blocks: Iterable[Any], lora: LoraSpec, dtype: Any, drop: Callable[[float], nn.Cell]) -> None:
    """Put adapters beside the linear layers of `blocks` that `lora` targets."""
    for linear, parts, _ in adapted_in(dict(enumerate(blocks)), lora):
        linear.adapters = Adapters(parts, lora, linear.weight.shape, dtype, drop)
