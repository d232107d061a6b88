"""Output projection and cross entropy in one, by blocks of tokens: no (B, T, V) tensor is ever whole.

The gradient of the logits is softmax - onehot and needs nothing from later, so the forward pass
already turns each block of logits into its share of the gradients of the hidden states and of the
projection. Nothing is computed twice, and memory does not grow with vocabulary x tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# By device type, any accelerator being "other".
# Logits alive at once: on a CPU few enough for its caches, elsewhere enough to keep it busy.
BLOCK_LOGITS = {"cpu": 2**22, "other": 2**28}
SCORED_LOGITS = {"cpu": 2**24, "other": 2**28}  # where there are no gradients: the product is all there is
# The projection gets rows of zeros up to a multiple of this: tensor cores are slow on odd sizes.
ROW_MULTIPLE = {"cpu": 1, "other": 64}


def linear_cross_entropy(hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Return the sum over tokens of mask * -log softmax(hidden @ weight.T)[label], fp32.

    `hidden` (N, H) is in the compute type, `weight` (V, H) fp32, `labels` (N,) int64 and in range,
    `mask` (N,) in the compute type. A frozen `weight` gets no gradient, and costs none.
    """
    total: Tensor = _LinearCrossEntropy.apply(hidden, weight, labels, mask)  # type: ignore[no-untyped-call]
    return total


@torch.no_grad()
def token_losses(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Return the (N,) fp32 negative log likelihood of each label; arguments as above."""
    projection = _projection(hidden, weight)
    # Losses of their own for each block would lie between the freed logits, which then fit no other block.
    losses = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
    for rows in _blocks(hidden, weight, SCORED_LOGITS):
        losses[rows] = _negative_log_likelihood(
            _log_probs(hidden[rows], projection, len(weight)), labels[rows]
        )
    return losses


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        projection = _projection(hidden, weight)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        for rows in _blocks(hidden, weight, BLOCK_LOGITS):
            column = mask[rows, None]
            log_probs = _log_probs(hidden[rows], projection, len(weight))
            loss = _negative_log_likelihood(log_probs, labels[rows])
            total += torch.dot(loss, mask[rows].float())
            gradient = log_probs.exp_().to(hidden.dtype)
            gradient.scatter_(1, labels[rows, None], torch.expm1(-loss)[:, None].to(hidden.dtype))
            grad_hidden[rows] = (gradient @ projection) * column
            if grad_weight is not None:
                grad_weight += (gradient.t() @ (hidden[rows] * column))[: len(weight)]
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        of_weight = None if grad_weight is None else grad_weight * grad_total
        return grad_hidden * grad_total, of_weight, None, None


def _projection(hidden: Tensor, weight: Tensor) -> Tensor:
    """Return the output projection in the type of `hidden`, with the rows of zeros that the device likes."""
    missing = -len(weight) % _for_device(ROW_MULTIPLE, hidden)
    projection = weight.to(hidden.dtype)
    return F.pad(projection, (0, 0, 0, missing)) if missing else projection


def _blocks(hidden: Tensor, weight: Tensor, logits: dict[str, int]) -> Iterator[slice]:
    size = max(1, _for_device(logits, hidden) // len(weight))
    for start in range(0, len(hidden), size):
        yield slice(start, start + size)


def _for_device(table: dict[str, int], tensor: Tensor) -> int:
    return table.get(tensor.device.type, table["other"])


def _log_probs(hidden: Tensor, projection: Tensor, vocab_size: int) -> Tensor:
    logits = hidden @ projection.t()
    logits[:, vocab_size:] = -torch.inf  # the rows of zeros are no tokens
    return torch.log_softmax(logits, -1, dtype=torch.float32)


def _negative_log_likelihood(log_probs: Tensor, labels: Tensor) -> Tensor:
    return -log_probs.gather(1, labels[:, None]).squeeze(1)
