"""Output projection and cross entropy in one, by blocks of tokens: no (B, T, V) tensor is ever whole.

The gradient of the logits is softmax - onehot and needs nothing from later, so the forward pass
already turns each block of logits into its share of the gradients of the hidden states and of the
projection. Nothing is computed twice, and memory does not grow with vocabulary x tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

BLOCK_LOGITS = {"cpu": 2**22}  # logits alive at once: few on CPU,
LARGE_BLOCK_LOGITS = 2**28  # enough to fill any accelerator


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Return the sum over tokens of mask * -log softmax(hidden @ weight.T)[label], fp32.

    `hidden` is (N, H), `weight` (V, H), `labels` (N,) int32 and in range, `mask` (N,) float32. A frozen
    `weight` gets no gradient, and costs none.
    """
    return _LinearCrossEntropy.apply(hidden, weight, labels, mask)


def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Return the (N,) fp32 negative log likelihood of each label; arguments as above."""
    losses = [
        _loss_and_probabilities(hidden[rows], weight, labels[rows])[0] for rows in _blocks(hidden, weight)
    ]
    return paddle.concat(losses).flatten()


class _LinearCrossEntropy(PyLayer):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        total = paddle.zeros([])
        grad_hidden = []
        grad_weight = None if weight.stop_gradient else paddle.zeros_like(weight)
        for rows in _blocks(hidden, weight):
            column = mask[rows].unsqueeze(1)
            loss, gradient = _loss_and_probabilities(hidden[rows], weight, labels[rows])
            total += (loss * column).sum()
            gradient.put_along_axis_(labels[rows].unsqueeze(1), paddle.expm1(-loss), 1, broadcast=False)
            grad_hidden.append(paddle.matmul(gradient, weight) * column)
            if grad_weight is not None:
                share = paddle.matmul(gradient, hidden[rows] * column, transpose_x=True)
                grad_weight.add_(share.astype(grad_weight.dtype))
        ctx.save_for_backward(paddle.concat(grad_hidden).astype(hidden.dtype), grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensor()
        of_weight = None if grad_weight is None else grad_weight * grad_total
        return grad_hidden * grad_total, of_weight, None, None


def _blocks(hidden: Tensor, weight: Tensor) -> Iterator[slice]:
    device = "cpu" if hidden.place.is_cpu_place() else "accelerator"
    size = max(1, BLOCK_LOGITS.get(device, LARGE_BLOCK_LOGITS) // len(weight))
    for start in range(0, len(hidden), size):
        yield slice(start, start + size)


def _loss_and_probabilities(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the (N, 1) negative log likelihoods and the (N, V) softmax of the logits, both fp32."""
    logits = paddle.matmul(hidden, weight, transpose_y=True).astype("float32")
    labels = labels.unsqueeze(1)
    highest = paddle.argmax(logits, axis=1, keepdim=True, dtype="int32")
    # -log softmax[label] by way of the likeliest token, whose probability never vanishes: on CPU
    # Paddle's softmax and cross entropy cut everything beyond 64 below the highest logit.
    lead = _pick(logits, highest) - _pick(logits, labels)
    probabilities = F.softmax_(logits, axis=1)
    return lead - paddle.log(_pick(probabilities, highest)), probabilities


def _pick(values: Tensor, columns: Tensor) -> Tensor:
    # Without broadcast=False Paddle first makes a copy of all values.
    return paddle.take_along_axis(values, columns, 1, broadcast=False)
