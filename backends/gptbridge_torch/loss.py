"""Output projection and cross entropy in one, by blocks of tokens: no (B, T, V) tensor is ever whole.

The gradient of the logits is softmax - onehot and needs nothing from later, so the forward pass
already turns each block of logits into its share of the gradients of the hidden states and of the
projection. Nothing is computed twice, and memory does not grow with vocabulary x tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from gptbridge_torch.collectives import MAX, Cut, all_reduce

# By device type, any accelerator being "other".
# Logits alive at once: on a CPU few enough for its caches, elsewhere enough to keep it busy.
BLOCK_LOGITS = {"cpu": 2**22, "other": 2**28}
SCORED_LOGITS = {"cpu": 2**24, "other": 2**28}  # where there are no gradients: the product is all there is
# The projection gets rows of zeros up to a multiple of this: tensor cores are slow on odd sizes.
ROW_MULTIPLE = {"cpu": 1, "other": 64}


@dataclass(frozen=True, slots=True)
class Words:
    """Which tokens of the vocabulary this rank has, of those that the ranks of `group` share."""

    start: int
    stop: int
    most: int  # no rank has more
    group: ProcessGroup | None = None

    @classmethod
    def of(cls, vocab_size: int, cut: Cut) -> Words:
        """Return this rank's tokens."""
        return cls(*cut.part(vocab_size), max(cut.lengths(vocab_size)), cut.group)

    def find(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return which of `tokens` are this rank's, and their rows of its weight, some row for the others."""
        mine = (tokens >= self.start) & (tokens < self.stop)
        return mine, (tokens - self.start).clamp(0, self.stop - self.start - 1)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, words: Words
) -> Tensor:
    """Return the sum over tokens of mask * -log softmax(hidden @ weight.T)[label], fp32.

    `hidden` (N, H) is in the compute type, `weight` (V, H) fp32, `labels` (N,) int64 and in range,
    `mask` (N,) in the compute type. Of `weight` this rank has `words`; the ranks exchange vectors alone.
    A frozen `weight` gets no gradient, and costs none. Of float32 `labels`, which are values, it is
    the sum of the squared errors of the one output.
    """
    if labels.is_floating_point():
        return (_squared_errors(hidden, weight, labels) * mask).sum()
    total: Tensor = _LinearCrossEntropy.apply(hidden, weight, labels, mask, words)  # type: ignore[no-untyped-call]
    return total


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor, words: Words) -> Tensor:
    """Return the (N,) fp32 negative log likelihood of each label; arguments as above."""
    if labels.is_floating_point():
        return _squared_errors(hidden, weight, labels)
    projection = _projection(hidden, weight)
    # Losses of their own for each block would lie between the freed logits, which then fit no other block.
    losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    for rows in _blocks(hidden, words, SCORED_LOGITS):
        losses[rows] = _negative_log_likelihood(
            _log_probs(hidden[rows], projection, words), labels[rows], words
        )
    return losses


def _squared_errors(hidden: Tensor, weight: Tensor, values: Tensor) -> Tensor:
    """Return the (N,) fp32 squared errors of hidden @ weight.T, weight (1, H), against `values` (N,)."""
    return (F.linear(hidden, weight.to(hidden.dtype))[:, 0].float() - values).square()


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor, words: Words
    ) -> Tensor:
        projection = _projection(hidden, weight)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for rows in _blocks(hidden, words, BLOCK_LOGITS):
            column = mask[rows, None]
            log_probs = _log_probs(hidden[rows], projection, words)
            loss = _negative_log_likelihood(log_probs, labels[rows], words)
            total += torch.dot(loss, mask[rows].float())
            gradient = log_probs.exp_().to(hidden.dtype)
            _set_labels(gradient, labels[rows], torch.expm1(-loss).to(hidden.dtype), words)
            grad_hidden[rows] = (gradient @ projection) * column
            if grad_weight is not None:
                grad_weight += (gradient.t() @ (hidden[rows] * column))[: len(weight)]
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        of_weight = None if grad_weight is None else grad_weight * grad_total
        return grad_hidden * grad_total, of_weight, None, None, None


def _projection(hidden: Tensor, weight: Tensor) -> Tensor:
    """Return the output projection in the type of `hidden`, with the rows of zeros that the device likes."""
    missing = -len(weight) % _for_device(ROW_MULTIPLE, hidden)
    projection = weight.to(hidden.dtype)
    return F.pad(projection, (0, 0, 0, missing)) if missing else projection


def _blocks(hidden: Tensor, words: Words, logits: dict[str, int]) -> Iterator[slice]:
    size = max(1, _for_device(logits, hidden) // words.most)
    for start in range(0, len(hidden), size):
        yield slice(start, start + size)


def _for_device(table: dict[str, int], tensor: Tensor) -> int:
    return table.get(tensor.device.type, table["other"])


def _log_probs(hidden: Tensor, projection: Tensor, words: Words) -> Tensor:
    """Return the log-probabilities of this rank's tokens among all."""
    logits = hidden @ projection.t()
    logits[:, words.stop - words.start :] = -torch.inf  # the rows of zeros are no tokens
    if words.group is None:
        return torch.log_softmax(logits, -1, dtype=torch.float32)
    logits = logits.float()
    logits -= all_reduce(logits.amax(1), words.group, MAX)[:, None]
    return logits.sub_(all_reduce(logits.exp().sum(1), words.group).log_()[:, None])


def _negative_log_likelihood(log_probs: Tensor, labels: Tensor, words: Words) -> Tensor:
    if words.group is None:
        return -log_probs.gather(1, labels[:, None]).squeeze(1)
    mine, rows = words.find(labels)
    return all_reduce(log_probs.gather(1, rows[:, None]).squeeze(1).neg_() * mine, words.group)


def _set_labels(gradient: Tensor, labels: Tensor, values: Tensor, words: Words) -> None:
    """Put `values` where the labels are, on the rank that has them."""
    if words.group is not None:
        mine, labels = words.find(labels)
        values = torch.where(mine, values, gradient.gather(1, labels[:, None]).squeeze(1))
    gradient.scatter_(1, labels[:, None], values[:, None])
