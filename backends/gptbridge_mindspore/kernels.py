"""The differentiated pieces of GPT: each function and its gradient, written for MindSpore's graphs.

MindSpore's own gradients of LayerNorm, GELU, softmax and cross entropy cost several times their
forward pass on CPU; these formulations keep every pass over the large tensors to a few cheap
operators. They are traced by `mindspore.jit`, so they use operators alone.
Shapes in comments: R rows (tokens), H width, B samples, T tokens, N heads, D head size, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import mindspore as ms
from mindspore import Tensor, ops

_ADD_BIAS = ops.BiasAdd()
_BATCH_NN = ops.BatchMatMul()
_BATCH_NT = ops.BatchMatMul(transpose_b=True)
_BATCH_TN = ops.BatchMatMul(transpose_a=True)
_NN = ops.MatMul()
_NT = ops.MatMul(transpose_b=True)
_TN = ops.MatMul(transpose_a=True)
_MEAN = ops.ReduceMean(keep_dims=True)
_SUM = ops.ReduceSum(keep_dims=False)
_SUM_KEPT = ops.ReduceSum(keep_dims=True)
_ARGMAX = ops.ArgMaxWithValue(axis=-1, keep_dims=True)
_SEGMENT_SUM = ops.UnsortedSegmentSum()
_SPLIT_QKV = ops.Split(-1, 3)
_SOFTMAX = ops.Softmax(-1)


def normalize(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return x with mean 0 and variance 1 along the last axis, and 1 / sqrt(variance + epsilon)."""
    centred = x - _MEAN(x, -1)
    scale = ops.rsqrt(_MEAN(centred * centred, -1) + epsilon)
    return centred * scale, scale


def normalize_grad(dy: Tensor, normal: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient of x from that of `normal`, with the two results of `normalize`."""
    return (dy - _MEAN(dy, -1) - normal * _MEAN(dy * normal, -1)) * scale


def add_bias(x: Tensor, bias: Tensor) -> Tensor:
    """Return the rows of (R, H) plus (H,): several times faster on CPU than `+`, which broadcasts."""
    return _ADD_BIAS(x, bias)


def column_sum(x: Tensor) -> Tensor:
    """Return the (H,) sum of the rows of (R, H)."""
    return _SUM(x, 0)


def gelu_tanh_gate(x: Tensor) -> Tensor:
    """Return g with gelu_tanh(x) = x g: 0.5 (1 + tanh u) is sigmoid(2 u)."""
    return ops.sigmoid(x * (_TANH_1 + _TANH_3 * (x * x)))


def gelu_tanh_slope(x: Tensor, gate: Tensor) -> Tensor:
    """Return d gelu_tanh / dx."""
    return gate + x * (gate - gate * gate) * (_TANH_1 + (3 * _TANH_3) * (x * x))


def gelu_erf_gate(x: Tensor) -> Tensor:
    """Return g with gelu(x) = x g: the normal distribution function."""
    return 0.5 + 0.5 * ops.erf(x * math.sqrt(0.5))


def gelu_erf_slope(x: Tensor, gate: Tensor) -> Tensor:
    """Return d gelu / dx."""
    return gate + x * (ops.exp(-0.5 * (x * x)) * (1 / math.sqrt(2 * math.pi)))


def quick_gelu_gate(x: Tensor) -> Tensor:
    """Return g with quick_gelu(x) = x g."""
    return ops.sigmoid(_QUICK * x)


def quick_gelu_slope(x: Tensor, gate: Tensor) -> Tensor:
    """Return d quick_gelu / dx."""
    return gate + _QUICK * x * (gate - gate * gate)


_TANH_1 = 2 * math.sqrt(2 / math.pi)
_TANH_3 = 0.044715 * _TANH_1
_QUICK = 1.702

# Every activation here is x * gate(x); the gate is kept for the way back.
ACTIVATIONS = {
    "gelu_tanh": (gelu_tanh_gate, gelu_tanh_slope),
    "gelu_erf": (gelu_erf_gate, gelu_erf_slope),
    "quick_gelu": (quick_gelu_gate, quick_gelu_slope),
}


class Products:
    """Matrix products in the compute precision: fp32 in, fp32 out."""

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype

    def nn(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a b."""
        return _NN(a.astype(self.dtype), b.astype(self.dtype)).astype(ms.float32)

    def nt(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a b^T."""
        return _NT(a.astype(self.dtype), b.astype(self.dtype)).astype(ms.float32)

    def tn(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a^T b."""
        return _TN(a.astype(self.dtype), b.astype(self.dtype)).astype(ms.float32)

    def batch_nn(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a b of each matrix of two stacks."""
        return _BATCH_NN(a.astype(self.dtype), b.astype(self.dtype)).astype(ms.float32)

    def batch_nt(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a b^T of each matrix of two stacks."""
        return _BATCH_NT(a.astype(self.dtype), b.astype(self.dtype)).astype(ms.float32)

    def batch_tn(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a^T b of each matrix of two stacks."""
        return _BATCH_TN(a.astype(self.dtype), b.astype(self.dtype)).astype(ms.float32)


def dropped(x: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return x with dropout: 0 where the mask is False, `scale` x elsewhere. It is its own gradient."""
    return x if mask is None else x * mask * scale


def split_heads(qkv: Tensor, shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v (B, N, T, D) from [q|k|v] (R, 3H); `shape` is (B, T, N, D)."""
    q, k, v = _SPLIT_QKV(qkv)
    return to_heads(q, shape), to_heads(k, shape), to_heads(v, shape)


def to_heads(x: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Return (B, N, T, D) from (R, H)."""
    return x.reshape(shape).transpose(0, 2, 1, 3)


def from_heads(x: Tensor) -> Tensor:
    """Return (R, H) from (B, N, T, D)."""
    b, n, t, d = x.shape
    return x.transpose(0, 2, 1, 3).reshape(b * t, n * d)


def softmax(x: Tensor) -> Tensor:
    """Return the softmax along the last axis."""
    return _SOFTMAX(x)


def row_dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the sum of a * b along the last axis, which is kept."""
    return _SUM_KEPT(a * b, -1)


def negative_log_likelihood(logits: Tensor, probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the (R,) -log softmax(logits)[label], with the softmax already known.

    The normaliser comes from the likeliest token, whose probability is at least 1 / V: no
    logarithm of a number that underflowed.
    """
    best, highest = _ARGMAX(logits)
    own = ops.gather_d(logits, 1, labels.reshape(-1, 1))
    return (highest - own - ops.log(ops.gather_d(probabilities, 1, best))).reshape(-1)


def scatter_rows(rows: Tensor, ids: Tensor, count: int) -> Tensor:
    """Return (count, H): each row added at its id."""
    return _SEGMENT_SUM(rows, ids, count)
