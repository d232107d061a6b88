"""GPT on MindSpore: pre-LayerNorm blocks, learned positions, tied or separate head.

Embedding, block and head are functions with their gradients written beside them, compiled by
`mindspore.jit`; here is the loop over the layers. Weights and gradients are dicts by canonical name.
Shapes: B samples, T tokens, R = B T rows, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from gptbridge.weights.architecture import parameters, sizes
from gptbridge.weights.layouts.rules import CONCATENATED, QKV_BIAS, QKV_WEIGHT, Layout, rules
from gptbridge_mindspore.block import Block
from gptbridge_mindspore.dropout import DropoutMasks
from gptbridge_mindspore.embedding import Embedding
from gptbridge_mindspore.loss import Head, add_gradients
from gptbridge_specs import ModelSpec

Tensors = Mapping[str, Tensor]

# Matrices are (in, out); q, k and v are one.
LAYOUT = Layout(
    "mindspore",
    "memory",
    rules(
        top={
            "wte.weight": ("wte.weight", "v i"),
            "wpe.weight": ("wpe.weight", "t i"),
            "ln_f.weight": ("ln_f.weight", "i"),
            "ln_f.bias": ("ln_f.bias", "i"),
            "lm_head.weight": ("lm_head.weight", "v i"),
        },
        block={
            "ln_1.weight": ("ln_1.weight", "i"),
            "ln_1.bias": ("ln_1.bias", "i"),
            QKV_WEIGHT: ("attn.c_attn.weight", f"i {CONCATENATED}"),
            QKV_BIAS: ("attn.c_attn.bias", CONCATENATED),
            "attn.c_proj.weight": ("attn.c_proj.weight", "(m g d) o"),
            "attn.c_proj.bias": ("attn.c_proj.bias", "o"),
            "ln_2.weight": ("ln_2.weight", "i"),
            "ln_2.bias": ("ln_2.bias", "i"),
            "mlp.c_fc.weight": ("mlp.c_fc.weight", "i f"),
            "mlp.c_fc.bias": ("mlp.c_fc.bias", "f"),
            "mlp.c_proj.weight": ("mlp.c_proj.weight", "f o"),
            "mlp.c_proj.bias": ("mlp.c_proj.bias", "o"),
        },
        blocks="h.{}.",
    ),
)


def empty_weights(model: ModelSpec) -> dict[str, Tensor]:
    """Return the tensors of `model` by name, in the order of the architecture table."""
    whole, names = sizes(model), [parameter.name for parameter in parameters(model)]
    natives = LAYOUT.natives(names, model.num_layers)
    return {native.name: Tensor(np.zeros(native.axes.shape(whole), np.float32)) for native in natives}


class GPT:
    """The whole model as functions of its weights, which it does not hold."""

    def __init__(self, model: ModelSpec, granularity: str, dtype: Any) -> None:
        names = [n.name for n in LAYOUT.natives([p.name for p in parameters(model)], model.num_layers)]
        self._layers = [
            [name for name in names if name.startswith(f"h.{n}.")] for n in range(model.num_layers)
        ]
        self._no_dropout = DropoutMasks(model, None)
        self._embedding = Embedding(model)
        self._block = Block(model, granularity, dtype)
        self._head = Head(model, dtype)
        self._bias: dict[int, Tensor] = {}

    def hidden(self, weights: Tensors, tokens: NDArray[np.int32]) -> Tensor:
        """Return (R, H) before the last LayerNorm of (B, T) tokens, without dropout."""
        shape, none = tokens.shape, self._no_dropout
        x = self._embedding.forward(Tensor(tokens), none.embedding(shape), weights)
        for n, names in enumerate(self._layers):
            layer = [weights[name] for name in names]
            x, _ = self._block.forward(x, self._causal_bias(shape[1]), none.block(n, shape), layer)
        return _rows(x)

    def token_losses(self, weights: Tensors, rows: Tensor, labels: NDArray[np.int32]) -> Tensor:
        """Return the (R,) negative log likelihoods of (R,) labels from (R, H) hidden rows."""
        return self._head.token_losses(rows, labels, weights)

    def logits(self, weights: Tensors, rows: Tensor) -> Tensor:
        """Return (R, V) logits of (R, H) hidden rows."""
        return self._head.logits(rows, weights)

    def loss_and_gradients(
        self,
        weights: Tensors,
        inputs: NDArray[np.int32],
        labels: NDArray[np.int32],
        share: NDArray[np.float32],
        dropout: DropoutMasks,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of `share` x negative log likelihood over (B, T) labels, and its gradients."""
        shape, tokens = inputs.shape, Tensor(inputs)
        bias = self._causal_bias(shape[1])
        x = self._embedding.forward(tokens, dropout.embedding(shape), weights)
        passed = []
        for n, names in enumerate(self._layers):
            layer = [weights[name] for name in names]
            y, kept = self._block.forward(x, bias, dropout.block(n, shape), layer)
            passed.append((x, kept))
            x = y
        loss, d_rows, gradients = self._head.gradients(_rows(x), labels.ravel(), share.ravel(), weights)
        dx = d_rows.reshape(x.shape)
        for n, names in reversed(list(enumerate(self._layers))):
            x, kept = passed.pop()
            layer = [weights[name] for name in names]
            dx, of_layer = self._block.backward(dx, x, kept, bias, dropout.block(n, shape), layer)
            gradients.update(zip(names, of_layer, strict=True))
        add_gradients(gradients, self._embedding.backward(dx, tokens, dropout.embedding(shape)))
        return loss, gradients

    def _causal_bias(self, length: int) -> Tensor:
        """Return the (T, T) term that hides later positions from the softmax."""
        if length not in self._bias:
            self._bias[length] = Tensor(np.triu(np.full((length, length), -np.inf, np.float32), 1))
        return self._bias[length]


def _rows(x: Tensor) -> Tensor:
    """Return (R, H) from (B, T, H)."""
    return x.reshape(-1, x.shape[-1])
