"""Output projection and cross entropy in one, by blocks of tokens: no (B, T, V) tensor is ever whole.

The gradient of the logits is softmax - onehot and needs nothing from later, so the forward pass
already turns each block of logits into its share of the gradients of the hidden states and of the
projection. Nothing is computed twice, and memory does not grow with vocabulary x tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor
from paddle.autograd import PyLayer

from gptbridge_paddle.collectives import MAX, Cut, all_reduce
from gptbridge_paddle.groups import Group

BLOCK_LOGITS = {"cpu": 2**22}  # logits alive at once: few on CPU,
LARGE_BLOCK_LOGITS = 2**28  # enough to fill any accelerator


@dataclass(frozen=True, slots=True)
class Words:
    """Which tokens of the vocabulary this rank has, of those that the ranks of `group` share."""

    start: int
    stop: int
    most: int  # no rank has more
    group: Group | None = None

    @classmethod
    def of(cls, vocab_size: int, cut: Cut) -> Words:
        """Return this rank's tokens."""
        return cls(*cut.part(vocab_size), max(cut.lengths(vocab_size)), cut.group)

    def find(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return which of `tokens` are this rank's, and their rows of its weight, some row for the others."""
        mine = paddle.logical_and(tokens >= self.start, tokens < self.stop)
        return mine, paddle.clip(tokens - self.start, 0, self.stop - self.start - 1)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, words: Words
) -> Tensor:
    """Return the sum over tokens of mask * -log softmax(hidden @ weight.T)[label], fp32.

    `hidden` is (N, H), `weight` (V, H), `labels` (N,) int32 and in range, `mask` (N,) float32. Of
    `weight` this rank has `words`; the ranks exchange vectors alone. A frozen `weight` gets no gradient, and
    costs none. Of float32 `labels`, which are values, it is the
    sum of the squared errors of the one output.
    """
    if labels.dtype == paddle.float32:
        return (_squared_errors(hidden, weight, labels) * mask).sum()
    return _LinearCrossEntropy.apply(hidden, weight, labels, mask, words)


def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, words: Words) -> Tensor:
    """Return the (N,) fp32 negative log likelihood of each label; arguments as above."""
    if labels.dtype == paddle.float32:
        return _squared_errors(hidden, weight, labels)
    losses = [
        _loss_and_gradient(hidden[rows], weight, labels[rows], words)[0] for rows in _blocks(hidden, words)
    ]
    return paddle.concat(losses).flatten()


def _squared_errors(hidden: Tensor, weight: Tensor, values: Tensor) -> Tensor:
    """Return the (N,) fp32 squared errors of hidden @ weight.T, weight (1, H), against `values` (N,)."""
    return paddle.square(paddle.matmul(hidden, weight, transpose_y=True).astype("float32")[:, 0] - values)


class _LinearCrossEntropy(PyLayer):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, words: Words
    ) -> Tensor:
        total = paddle.zeros([])
        grad_hidden = []
        grad_weight = None if weight.stop_gradient else paddle.zeros_like(weight)
        for rows in _blocks(hidden, words):
            column = mask[rows].unsqueeze(1)
            loss, gradient = _loss_and_gradient(hidden[rows], weight, labels[rows], words)
            total += (loss * column).sum()
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


def _blocks(hidden: Tensor, words: Words) -> Iterator[slice]:
    device = "cpu" if hidden.place.is_cpu_place() else "accelerator"
    size = max(1, BLOCK_LOGITS.get(device, LARGE_BLOCK_LOGITS) // words.most)
    for start in range(0, len(hidden), size):
        yield slice(start, start + size)


def _loss_and_gradient(hidden: Tensor, weight: Tensor, labels: Tensor, words: Words) -> tuple[Tensor, Tensor]:
    """Return the (N, 1) negative log likelihoods and their (N, V) gradients by the logits, both fp32."""
    logits = paddle.matmul(hidden, weight, transpose_y=True).astype("float32")
    labels = labels.unsqueeze(1)
    highest = paddle.argmax(logits, axis=1, keepdim=True, dtype="int32")
    # -log softmax[label] by way of the likeliest token, whose probability never vanishes: on CPU
    # Paddle's softmax and cross entropy cut everything beyond 64 below the highest logit.
    if words.group is None:
        lead = _pick(logits, highest) - _pick(logits, labels)
        probabilities = F.softmax_(logits, axis=1)
        loss = lead - paddle.log(_pick(probabilities, highest))
        return loss, probabilities.put_along_axis_(labels, paddle.expm1(-loss), 1, broadcast=False)
    mine, labels = words.find(labels)
    label = all_reduce(_pick(logits, labels) * mine.astype("float32"), words.group)
    peak = _pick(logits, highest)
    probabilities = F.softmax_(logits, axis=1)
    log_sum = peak - paddle.log(_pick(probabilities, highest))  # over this rank's rows
    most = all_reduce(log_sum.clone(), words.group, MAX)
    log_total = most + paddle.log(all_reduce(paddle.exp(log_sum - most), words.group))
    probabilities.multiply_(paddle.exp(log_sum - log_total))
    loss = log_total - label
    at_label = paddle.where(mine, paddle.expm1(-loss), _pick(probabilities, labels))
    return loss, probabilities.put_along_axis_(labels, at_label, 1, broadcast=False)


def _pick(values: Tensor, columns: Tensor) -> Tensor:
    # Without broadcast=False Paddle first makes a copy of all values.
    return paddle.take_along_axis(values, columns, 1, broadcast=False)
