"""GPT on MindSpore: pre-LayerNorm blocks, learned positions, tied or separate head.

A few functions, each with its gradient written beside it and compiled by `mindspore.jit`, and the
loop over the layers between them. Weights and gradients are dicts by canonical name.
Shapes: B samples, T tokens, R = B T rows, H hidden size, N heads, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from gptbridge.weights.canonical import parameters
from gptbridge_mindspore import kernels
from gptbridge_mindspore.block import Block
from gptbridge_mindspore.dropout import DropoutMasks, keep_scale
from gptbridge_specs import ModelSpec

LOGITS_AT_ONCE = 2**24  # numbers: the head works through the rows of a batch in pieces of this size
BLOCK_WEIGHTS = 12

Tensors = Mapping[str, Tensor]


class GPT:
    """The whole model as functions of its weights."""

    def __init__(self, model: ModelSpec, granularity: str, dtype: Any) -> None:
        self._model = model
        names = [p.name for p in parameters(model)]
        self._layers = [
            names[2 + n * BLOCK_WEIGHTS : 2 + (n + 1) * BLOCK_WEIGHTS] for n in range(model.num_layers)
        ]
        self._head_name = "wte.weight" if model.tie_word_embeddings else "lm_head.weight"
        self._embedding = Embedding(model)
        self._block = Block(model, granularity, dtype)
        self._head = Head(model, dtype)
        self._bias: dict[int, Tensor] = {}

    def hidden(self, weights: Tensors, tokens: NDArray[np.int32]) -> Tensor:
        """Return (B, T, H) before the last LayerNorm of (B, T) tokens, without dropout."""
        none = DropoutMasks(self._model, None)
        x = self._embedding.forward(Tensor(tokens), none.embedding(tokens.shape), weights)
        bias = self._causal_bias(tokens.shape[1])
        for n, names in enumerate(self._layers):
            layer = [weights[name] for name in names]
            x, _ = self._block.forward(x, bias, none.block(n, tokens.shape), layer)
        return x

    def token_losses(self, weights: Tensors, rows: Tensor, labels: NDArray[np.int32]) -> Tensor:
        """Return the (R,) negative log likelihoods of (R,) labels from (R, H) hidden rows."""
        head = self._head_weights(weights)
        pieces = self._pieces(len(labels))
        return _joined([self._head.token_losses(_cut(rows, p), Tensor(labels[p]), head) for p in pieces])

    def logits(self, weights: Tensors, rows: Tensor) -> Tensor:
        """Return (R, V) logits of (R, H) hidden rows."""
        head = self._head_weights(weights)
        return _joined([self._head.logits(_cut(rows, p), head) for p in self._pieces(rows.shape[0])])

    def loss_and_gradients(
        self,
        weights: Tensors,
        inputs: NDArray[np.int32],
        labels: NDArray[np.int32],
        share: NDArray[np.float32],
        dropout: DropoutMasks,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the sum of `share` x negative log likelihood over (B, T) labels, and its gradients."""
        tokens = Tensor(inputs)
        bias = self._causal_bias(inputs.shape[1])
        x = self._embedding.forward(tokens, dropout.embedding(inputs.shape), weights)
        stack = []
        for n, names in enumerate(self._layers):
            layer = [weights[name] for name in names]
            y, kept = self._block.forward(x, bias, dropout.block(n, inputs.shape), layer)
            stack.append((n, names, layer, x, kept))
            x = y
        gradients: dict[str, Tensor] = {}
        loss, dx = self._head_gradients(weights, x, labels, share, gradients)
        del x, y, kept
        while stack:
            n, names, layer, x, kept = stack.pop()
            masks = dropout.block(n, inputs.shape)
            dx, of_layer = self._block.backward(dx, x, kept, bias, masks, layer)
            gradients.update(zip(names, of_layer, strict=True))
        self._embedding.backward(dx, tokens, dropout.embedding(inputs.shape), gradients)
        return loss, gradients

    def _head_gradients(
        self,
        weights: Tensors,
        x: Tensor,
        labels: NDArray[np.int32],
        share: NDArray[np.float32],
        gradients: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the gradient of x; put those of the head's weights into `gradients`."""
        rows, flat_labels, flat_share = x.reshape(-1, x.shape[-1]), labels.reshape(-1), share.reshape(-1)
        names = ("ln_f.weight", "ln_f.bias", self._head_name)
        head = self._head_weights(weights)
        losses, of_rows = [], []
        for piece in self._pieces(len(flat_labels)):
            loss, dx, *of_head = self._head.gradients(
                _cut(rows, piece), Tensor(flat_labels[piece]), Tensor(flat_share[piece]), head
            )
            losses.append(loss.reshape(1))
            of_rows.append(dx)
            add_gradients(gradients, dict(zip(names, of_head, strict=True)))
        return _joined(losses).sum(), _joined(of_rows).reshape(x.shape)

    def _pieces(self, rows: int) -> list[slice]:
        """Return equal pieces of `rows` whose logits are LOGITS_AT_ONCE numbers at the most."""
        most = max(1, LOGITS_AT_ONCE // self._model.vocab_size)
        size = next(size for size in range(min(rows, most), 0, -1) if rows % size == 0)
        return [slice(start, start + size) for start in range(0, rows, size)]

    def _head_weights(self, weights: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        return weights["ln_f.weight"], weights["ln_f.bias"], weights[self._head_name]

    def _causal_bias(self, length: int) -> Tensor:
        """Return the (T, T) term that hides later positions from the softmax."""
        if length not in self._bias:
            self._bias[length] = Tensor(np.triu(np.full((length, length), -np.inf, np.float32), 1))
        return self._bias[length]


class Embedding:
    """Token and position embeddings, with dropout on their sum."""

    def __init__(self, model: ModelSpec) -> None:
        self.vocab_size = model.vocab_size
        self.positions = model.max_position_embeddings
        self.keep = keep_scale(model.hidden_dropout_prob)
        self._forward = ms.jit(self.forward_graph)
        self._backward = ms.jit(self.backward_graph)

    def forward(self, tokens: Tensor, mask: Tensor | None, weights: Tensors) -> Tensor:
        """Return (B, T, H) of (B, T) tokens."""
        return self._forward(tokens, mask, weights["wte.weight"], weights["wpe.weight"])

    def backward(self, dx: Tensor, tokens: Tensor, mask: Tensor | None, gradients: dict[str, Tensor]) -> None:
        """Add the gradients of both embeddings to `gradients`; a tied head has put its own there."""
        words, positions = self._backward(dx, tokens, mask)
        add_gradients(gradients, {"wte.weight": words, "wpe.weight": positions})

    def forward_graph(self, tokens: Tensor, mask: Any, words: Tensor, positions: Tensor) -> Tensor:
        """Compute `forward`."""
        x = ops.gather(words, tokens, 0) + positions[: tokens.shape[1]]
        return kernels.dropped(x.reshape(-1, x.shape[-1]), mask, self.keep).reshape(x.shape)

    def backward_graph(self, dx: Tensor, tokens: Tensor, mask: Any) -> tuple[Tensor, Tensor]:
        """Compute the gradients of the token and the position embedding."""
        _, length, width = dx.shape
        dx = kernels.dropped(dx.reshape(-1, width), mask, self.keep)
        words = kernels.scatter_rows(dx, tokens.reshape(-1), self.vocab_size)
        positions = kernels.column_sum(dx.reshape(-1, length, width))
        if length < self.positions:
            unused = ops.zeros((self.positions - length, width), ms.float32)
            positions = ops.concat((positions, unused), 0)
        return words, positions


class Head:
    """The last LayerNorm and the output projection, which is the token embedding when tied."""

    def __init__(self, model: ModelSpec, dtype: Any) -> None:
        self.vocab_size = model.vocab_size
        self.epsilon = model.layernorm_epsilon
        self.products = kernels.Products(dtype)
        self._logits = ms.jit(self.logits_graph)
        self._token_losses = ms.jit(self.token_losses_graph)
        self._gradients = ms.jit(self.gradients_graph)

    def logits(self, rows: Tensor, weights: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return (R, V) logits of (R, H) rows."""
        return self._logits(rows, *weights)

    def token_losses(self, rows: Tensor, labels: Tensor, weights: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Return the (R,) negative log likelihoods."""
        return self._token_losses(rows, labels, *weights)

    def gradients(
        self, rows: Tensor, labels: Tensor, share: Tensor, weights: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, ...]:
        """Return sum(share x NLL), then its gradients: of the rows and of the three weights."""
        return self._gradients(rows, labels, share, *weights)

    def logits_graph(self, rows: Tensor, gain: Tensor, offset: Tensor, words: Tensor) -> Tensor:
        """Compute `logits`."""
        normal, _ = kernels.normalize(rows, self.epsilon)
        return self.products.nt(normal * gain + offset, words)

    def token_losses_graph(
        self, rows: Tensor, labels: Tensor, gain: Tensor, offset: Tensor, words: Tensor
    ) -> Tensor:
        """Compute `token_losses`."""
        logits = self.logits_graph(rows, gain, offset, words)
        return kernels.negative_log_likelihood(logits, kernels.softmax(logits), labels)

    def gradients_graph(
        self, rows: Tensor, labels: Tensor, share: Tensor, gain: Tensor, offset: Tensor, words: Tensor
    ) -> tuple[Tensor, ...]:
        """Compute `gradients`.

        The gradient of the logits is share x (softmax - one-hot). Its share goes to the rows and its
        one-hot part is gathered and scattered as rows, so that no pass over (R, V) is left but the softmax.
        """
        normal, scale = kernels.normalize(rows, self.epsilon)
        normed = normal * gain + offset
        logits = self.products.nt(normed, words)
        probabilities = kernels.softmax(logits)
        losses = kernels.negative_log_likelihood(logits, probabilities, labels)
        share = share.reshape(-1, 1)
        d_normed = share * (self.products.nn(probabilities, words) - ops.gather(words, labels, 0))
        shared = share * normed
        d_words = self.products.tn(probabilities, shared) - kernels.scatter_rows(
            shared, labels, self.vocab_size
        )
        return (
            kernels.row_dot(losses, share.reshape(-1)),
            kernels.normalize_grad(d_normed * gain, normal, scale),
            kernels.column_sum(d_normed * normal),
            kernels.column_sum(d_normed),
            d_words,
        )


def add_gradients(total: dict[str, Tensor], more: Tensors) -> None:
    """Add each tensor of `more` to the one of its name in `total`."""
    for name, gradient in more.items():
        total[name] = total[name] + gradient if name in total else gradient


def _cut(rows: Tensor, piece: slice) -> Tensor:
    return rows if piece == slice(0, rows.shape[0]) else rows[piece]


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else ops.concat(pieces, 0)
