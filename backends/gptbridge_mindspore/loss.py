"""The last LayerNorm, the output projection and the loss, each with its gradient.

The rows of a batch go through in equal pieces, so that the logits of a large vocabulary are never
all in memory. Shapes: R rows (tokens), H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from gptbridge_mindspore import kernels
from gptbridge_specs import ModelSpec

LOGITS_AT_ONCE = 2**24  # numbers

Tensors = Mapping[str, Tensor]


class Head:
    """What turns hidden rows into logits, losses and gradients. The projection may be the token embedding."""

    def __init__(self, model: ModelSpec, dtype: Any) -> None:
        self.vocab_size = model.vocab_size
        self.epsilon = model.layernorm_epsilon
        self.products = kernels.Products(dtype)
        self._names = ("ln_f.weight", "ln_f.bias", model_head(model))
        self._logits = ms.jit(self.logits_graph)
        self._token_losses = ms.jit(self.token_losses_graph)
        self._gradients = ms.jit(self.gradients_graph)

    def logits(self, rows: Tensor, weights: Tensors) -> Tensor:
        """Return (R, V) logits of (R, H) rows."""
        own = self._own(weights)
        return _joined([self._logits(_cut(rows, piece), *own) for piece in self._pieces(rows)])

    def token_losses(self, rows: Tensor, labels: NDArray[np.int32], weights: Tensors) -> Tensor:
        """Return the (R,) negative log likelihoods of (R,) labels."""
        own = self._own(weights)
        pieces = self._pieces(rows)
        return _joined([self._token_losses(_cut(rows, p), Tensor(labels[p]), *own) for p in pieces])

    def gradients(
        self, rows: Tensor, labels: NDArray[np.int32], share: NDArray[np.float32], weights: Tensors
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Return sum(share x NLL) and its gradients: of the rows, and of the weights by name."""
        own = self._own(weights)
        losses, of_rows = [], []
        of_weights: dict[str, Tensor] = {}
        for piece in self._pieces(rows):
            loss, dx, *gradients = self._gradients(
                _cut(rows, piece), Tensor(labels[piece]), Tensor(share[piece]), *own
            )
            losses.append(loss)
            of_rows.append(dx)
            add_gradients(of_weights, dict(zip(self._names, gradients, strict=True)))
        return _joined(losses).sum(), _joined(of_rows), of_weights

    def logits_graph(self, rows: Tensor, gain: Tensor, offset: Tensor, words: Tensor) -> Tensor:
        """Compute `logits` of one piece."""
        normal, _ = kernels.normalize(rows, self.epsilon)
        return self.products.nt(normal * gain + offset, words)

    def token_losses_graph(
        self, rows: Tensor, labels: Tensor, gain: Tensor, offset: Tensor, words: Tensor
    ) -> Tensor:
        """Compute `token_losses` of one piece."""
        logits = self.logits_graph(rows, gain, offset, words)
        return kernels.negative_log_likelihood(logits, kernels.softmax(logits), labels)

    def gradients_graph(
        self, rows: Tensor, labels: Tensor, share: Tensor, gain: Tensor, offset: Tensor, words: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Compute `gradients` of one piece; the loss is (1,).

        The gradient of the logits is share x (softmax - one-hot). Its share goes to the rows and its
        one-hot part is gathered and scattered as rows, so that no pass over (R, V) is left but the softmax.
        """
        normal, scale = kernels.normalize(rows, self.epsilon)
        normed = normal * gain + offset
        logits = self.products.nt(normed, words)
        probabilities = kernels.softmax(logits)
        losses = kernels.negative_log_likelihood(logits, probabilities, labels)
        by_row = share.reshape(-1, 1)
        d_normed = by_row * (self.products.nn(probabilities, words) - ops.gather(words, labels, 0))
        shared = by_row * normed
        of_labels = kernels.scatter_rows(shared, labels, self.vocab_size)
        return (
            kernels.row_dot(losses, share),
            kernels.normalize_grad(d_normed * gain, normal, scale),
            kernels.column_sum(d_normed * normal),
            kernels.column_sum(d_normed),
            self.products.tn(probabilities, shared) - of_labels,
        )

    def _own(self, weights: Tensors) -> list[Tensor]:
        return [weights[name] for name in self._names]

    def _pieces(self, rows: Tensor) -> list[slice]:
        """Return equal pieces of the rows whose logits are LOGITS_AT_ONCE numbers at the most."""
        count = rows.shape[0]
        most = min(count, max(1, LOGITS_AT_ONCE // self.vocab_size))
        size = next(size for size in range(most, 0, -1) if count % size == 0)
        return [slice(start, start + size) for start in range(0, count, size)]


def model_head(model: ModelSpec) -> str:
    """Return the name of the output projection."""
    return "wte.weight" if model.tie_word_embeddings else "lm_head.weight"


def add_gradients(total: dict[str, Tensor], more: Tensors) -> None:
    """Add each tensor of `more` to the one of its name in `total`."""
    for name, gradient in more.items():
        total[name] = total[name] + gradient if name in total else gradient


def _cut(rows: Tensor, piece: slice) -> Tensor:
    return rows if piece == slice(0, rows.shape[0]) else rows[piece]


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else ops.concat(pieces, 0)
