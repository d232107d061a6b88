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

from gptbridge_mindspore.collectives import AllGather, AllReduce, Group, Joined, same
from gptbridge_mindspore.parallel import Cut
from gptbridge_mindspore.parts import own

LOGITS_AT_ONCE = 2**23  # numbers


class LinearCrossEntropy(nn.Cell):
    """Logits, losses and gradients of rows under an output projection, the products in the compute type.

    Where ranks have parts of the vocabulary, each has its part of the loss of its own labels, and of the
    gradient of `hidden`; they exchange a number a row and rank. A `frozen` projection has no gradient, and
    the place of it holds nothing that is of use.
    """

    def __init__(self, dtype: Any, cut: Cut, vocabulary: int, *, frozen: bool = False) -> None:
        super().__init__()
        self.dtype, self.frozen = dtype, frozen
        self.start, self.count = cut.words.start, len(cut.words)
        self.whole = cut.group is None
        self.nt = ops.MatMul(transpose_b=True)
        self.nn = ops.MatMul()
        self.tn = ops.MatMul(transpose_a=True)
        self.log_softmax = ops.LogSoftmax(-1) if cut.group is None else CutLogSoftmax(cut.group)
        self.join = same if cut.group is None else Joined(cut.group, cut.words, vocabulary)
        self.over_ranks = same if cut.group is None else AllReduce(cut.group)
        self.sum = ops.ReduceSum()
        self.scatter = ops.UnsortedSegmentSum()

    def construct(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return sum(share x loss) and its gradients, of hidden (R, H) and of weight (V, H).

        `labels` (R,) int32 are in range, `share` (R,) is the part of each token in the loss.
        """
        count, projection = weight.shape[0], weight.astype(self.dtype)
        labels, found = (labels, share) if self.whole else own(labels, self.start, self.count)
        by_row = ops.broadcast_to(share.reshape(-1, 1), hidden.shape)
        total, of_hidden, of_weight = 0.0, (), 0.0
        for start, end in pieces(hidden.shape[0], count):
            rows = hidden[start:end]
            if start > 0:
                done = of_hidden[-1] if self.frozen else of_weight  # type: ignore[misc]
                rows = ops.depend(rows, done)  # one piece after the other, or all would be in memory
            log_probs = self.log_softmax(self.nt(rows.astype(self.dtype), projection).astype(ms.float32))
            losses = self.losses(log_probs, labels[start:end], found[start:end])
            total = total + self.sum(losses * share[start:end])
            probs = ops.exp(log_probs).astype(self.dtype)
            of_hidden = (*of_hidden, self.nn(probs, projection).astype(ms.float32))  # type: ignore[assignment]
            if not self.frozen:
                shared = (rows * by_row[start:end]).astype(self.dtype)
                of_weight = of_weight + self.tn(probs, shared).astype(ms.float32)
        shared, target = hidden * by_row, ops.gather(weight, labels, 0)
        if not self.whole:
            by_label = ops.broadcast_to(found.reshape(-1, 1), hidden.shape)
            shared, target = shared * by_label, target * by_label
        if not self.frozen:
            of_weight = of_weight - self.scatter(shared, labels, count)
        d_hidden = of_hidden[0] if len(of_hidden) == 1 else ops.concat(of_hidden, 0)
        return total, (d_hidden - target) * by_row, of_weight

    def token_losses(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """Return the (R,) negative log likelihoods of (R,) labels."""
        labels, found = (labels, labels) if self.whole else own(labels, self.start, self.count)
        losses = ()
        for start, end in pieces(hidden.shape[0], weight.shape[0]):
            rows = hidden[start:end]
            if start > 0:
                rows = ops.depend(rows, losses[-1])  # type: ignore[misc]
            log_probs = self.log_softmax(self.product(rows, weight))
            losses = (*losses, self.losses(log_probs, labels[start:end], found[start:end]))  # type: ignore[assignment]
        return self.over_ranks(losses[0] if len(losses) == 1 else ops.concat(losses, 0))

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Return (R, V) logits, of the whole vocabulary."""
        return self.join(self.product(hidden, weight))

    def product(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Return (R, V) logits of this rank's part of the vocabulary."""
        return self.nt(hidden.astype(self.dtype), weight.astype(self.dtype)).astype(ms.float32)

    def losses(self, log_probs: Tensor, labels: Tensor, found: Tensor) -> Tensor:
        """Return the (R,) negative log likelihoods in (R, V), where `found` is 0 none."""
        losses = -ops.gather_d(log_probs, 1, labels.reshape(-1, 1)).reshape(-1)
        return losses if self.whole else losses * found


class SquaredError(LinearCrossEntropy):
    """The same of one output, whose values are wanted: labels are float32."""

    def construct(
        self, hidden: Tensor, weight: Tensor, labels: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return sum(share x error^2) and its gradients, of hidden (R, H) and of weight (1, H)."""
        errors = self.product(hidden, weight).reshape(-1) - labels
        of_output = (2.0 * errors * share).reshape(-1, 1)
        of_hidden = self.nn(of_output.astype(self.dtype), weight.astype(self.dtype)).astype(ms.float32)
        of_weight = self.tn(of_output.astype(self.dtype), hidden.astype(self.dtype)).astype(ms.float32)
        return self.sum(errors * errors * share), of_hidden, of_weight

    def token_losses(self, hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        """Return the (R,) squared errors against (R,) values."""
        errors = self.product(hidden, weight).reshape(-1) - labels
        return errors * errors


class CutLogSoftmax(nn.Cell):
    """Log softmax along the last axis, of which each rank has a part."""

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.gather = AllGather(group, 1)
        self.max, self.sum = ops.ReduceMax(keep_dims=True), ops.ReduceSum(keep_dims=True)

    def construct(self, x: Tensor) -> Tensor:
        """Return this rank's part (R, V) of the logarithms of probabilities that add up to 1 over all."""
        return x - ops.broadcast_to(self.total(self.gather(self.total(x))), x.shape)

    def total(self, x: Tensor) -> Tensor:
        """Return the (R, 1) logarithms of the sums of exponentials."""
        most = self.max(x, -1)
        return most + ops.log(self.sum(ops.exp(x - ops.broadcast_to(most, x.shape)), -1))


@ms.constexpr  # type: ignore[untyped-decorator]
def pieces(rows: int, vocabulary: int) -> tuple[tuple[int, int], ...]:
    """Return (start, end) of equal pieces of the rows, but for the last, of LOGITS_AT_ONCE logits at most."""
    count = -(-rows * vocabulary // LOGITS_AT_ONCE)
    size = -(-rows // min(count, rows))
    return tuple((start, min(start + size, rows)) for start in range(0, rows, size))
