"""Output projection and cross entropy in one, by pieces of rows: no (B T, V) tensor is ever whole.

The gradient of the logits is softmax - onehot and needs nothing from later, so each piece of logits
turns at once into the loss and its gradients. Derived by the framework it takes a fifth longer,
and every piece would stay in memory until the backward pass.
Shapes: R rows (tokens), H hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import mindspore as ms
from mindspore import Tensor, nn, ops

LOGITS_AT_ONCE = 2**23  # numbers


class LinearCrossEntropy(nn.Cell):
    """Logits, losses and gradients of rows under an output projection, the products in the compute type.

    A `frozen` projection has no gradient, and the place of it holds nothing that is of use.
    """

    def __init__(self, dtype: Any, *, frozen: bool = False) -> None:
        super().__init__()
        self.dtype = dtype
        self.frozen = frozen
        self.nt = ops.MatMul(transpose_b=True)
        self.nn = ops.MatMul()
        self.tn = ops.MatMul(transpose_a=True)
        self.log_softmax = ops.LogSoftmax(-1)
        self.sum = ops.ReduceSum()
        self.scatter = ops.UnsortedSegmentSum()

    def construct(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return sum(share x loss) and its gradients, of hidden (R, H) and of weight (V, H).

        `labels` (R,) int32 are in range, `share` (R,) is the part of each token in the loss.
        """
        count, projection = weight.shape[0], weight.astype(self.dtype)
        by_row = ops.broadcast_to(share.reshape(-1, 1), hidden.shape)
        total, of_hidden, of_weight = 0.0, (), 0.0
        for start, end in pieces(hidden.shape[0], count):
            rows = hidden[start:end]
            if start > 0:
                done = of_hidden[-1] if self.frozen else of_weight  # type: ignore[misc]
                rows = ops.depend(rows, done)  # one piece after the other, or all would be in memory
            log_probs = self.log_softmax(self.nt(rows.astype(self.dtype), projection).astype(ms.float32))
            total = total + self.sum(self.losses(log_probs, labels[start:end]) * share[start:end])
            probs = ops.exp(log_probs).astype(self.dtype)
            of_hidden = (*of_hidden, self.nn(probs, projection).astype(ms.float32))  # type: ignore[assignment]
            if not self.frozen:
                shared = (rows * by_row[start:end]).astype(self.dtype)
                of_weight = of_weight + self.tn(probs, shared).astype(ms.float32)
        if not self.frozen:
            of_weight = of_weight - self.scatter(hidden * by_row, labels, count)
        d_hidden = of_hidden[0] if len(of_hidden) == 1 else ops.concat(of_hidden, 0)
        return total, (d_hidden - ops.gather(weight, labels, 0)) * by_row, of_weight

    def token_losses(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """Return the (R,) negative log likelihoods of (R,) labels."""
        found = ()
        for start, end in pieces(hidden.shape[0], weight.shape[0]):
            rows = hidden[start:end]
            if start > 0:
                rows = ops.depend(rows, found[-1])  # type: ignore[misc]
            found = (*found, self.losses(self.log_softmax(self.logits(rows, weight)), labels[start:end]))  # type: ignore[assignment]
        return found[0] if len(found) == 1 else ops.concat(found, 0)

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Return (R, V) logits."""
        return self.nt(hidden.astype(self.dtype), weight.astype(self.dtype)).astype(ms.float32)

    def losses(self, log_probs: Tensor, labels: Tensor) -> Tensor:
        """Return the (R,) negative log likelihoods in (R, V)."""
        return -ops.gather_d(log_probs, 1, labels.reshape(-1, 1)).reshape(-1)


@ms.constexpr  # type: ignore[untyped-decorator]
def pieces(rows: int, vocabulary: int) -> tuple[tuple[int, int], ...]:
    """Return (start, end) of equal pieces of the rows, but for the last, of LOGITS_AT_ONCE logits at most."""
    count = -(-rows * vocabulary // LOGITS_AT_ONCE)
    size = -(-rows // min(count, rows))
    return tuple((start, min(start + size, rows)) for start in range(0, rows, size))
