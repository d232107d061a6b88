"""Token and position embeddings, with their gradients.

Shapes: B samples, T tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mindspore as ms
from mindspore import Tensor, ops

from gptbridge_mindspore import kernels
from gptbridge_mindspore.dropout import keep_scale
from gptbridge_specs import ModelSpec


class Embedding:
    """The sum of both embeddings, with dropout."""

    def __init__(self, model: ModelSpec) -> None:
        self.vocab_size = model.vocab_size
        self.positions = model.max_position_embeddings
        self.keep = keep_scale(model.hidden_dropout_prob)
        self._forward = ms.jit(self.forward_graph)
        self._backward = ms.jit(self.backward_graph)

    def forward(self, tokens: Tensor, mask: Tensor | None, weights: Mapping[str, Tensor]) -> Tensor:
        """Return (B, T, H) of (B, T) tokens."""
        return self._forward(tokens, mask, weights["wte.weight"], weights["wpe.weight"])

    def backward(self, dx: Tensor, tokens: Tensor, mask: Tensor | None) -> dict[str, Tensor]:
        """Return the gradients of both embeddings from that of their sum."""
        words, positions = self._backward(dx, tokens, mask)
        return {"wte.weight": words, "wpe.weight": positions}

    def forward_graph(self, tokens: Tensor, mask: Any, words: Tensor, positions: Tensor) -> Tensor:
        """Compute `forward`."""
        x = ops.gather(words, tokens, 0) + positions[: tokens.shape[1]]
        return kernels.dropped(x.reshape(-1, x.shape[-1]), mask, self.keep).reshape(x.shape)

    def backward_graph(self, dx: Tensor, tokens: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
        """Compute `backward`: the gradients of the token and of the position embedding."""
        _, length, width = dx.shape
        rows = kernels.dropped(dx.reshape(-1, width), mask, self.keep)
        words = kernels.scatter_rows(rows, tokens.reshape(-1), self.vocab_size)
        positions = kernels.column_sum(rows.reshape(-1, length, width))
        if length < self.positions:
            unused = ops.zeros((self.positions - length, width), ms.float32)
            positions = ops.concat((positions, unused), 0)
        return words, positions
