"""One pre-LayerNorm transformer block: a pure function and its gradient.

Both are compiled by `mindspore.jit` once for all layers, so that the first step costs the same
whatever the depth. What is kept from the forward to the backward pass is chosen by name.
Shapes: R = B T rows (samples x tokens), H hidden size, N heads, D head size, F feed-forward width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mindspore as ms
from mindspore import Tensor, ops

from gptbridge_mindspore import kernels
from gptbridge_mindspore.dropout import keep_scale
from gptbridge_mindspore.kernels import Products
from gptbridge_specs import ModelSpec

# A block's weights, in canonical order.
LN_1, LN_1_BIAS, C_ATTN, C_ATTN_BIAS, C_PROJ, C_PROJ_BIAS, LN_2, LN_2_BIAS, FC, FC_BIAS, OUT, OUT_BIAS = (
    range(12)
)

# What a block keeps for its backward pass; the backward pass computes the rest again.
VALUES = ("qkv", "probabilities", "context", "middle", "inner", "gate")
FORGOTTEN: dict[str, tuple[str, ...]] = {
    "none": (),
    "core_attn": ("probabilities",),
    "full_attn": ("qkv", "probabilities", "context"),
    "full": VALUES,
}
Kept = tuple[Tensor | None, ...]  # one of each of VALUES
Masks = Sequence[Tensor | None]


class Block:
    """One transformer block. Its weights are arguments: twelve tensors in canonical order."""

    def __init__(self, model: ModelSpec, granularity: str, dtype: Any) -> None:
        self.heads = model.num_attention_heads
        self.epsilon = model.layernorm_epsilon
        self.scale = model.head_size**-0.5
        self.gate, self.slope = kernels.ACTIVATIONS[model.activation]
        self.keep_hidden = keep_scale(model.hidden_dropout_prob)
        self.keep_attention = keep_scale(model.attention_probs_dropout_prob)
        self.products = Products(dtype)
        self._forgotten = FORGOTTEN[granularity]
        self._forward = ms.jit(self.forward_graph)
        self._backward = ms.jit(self.backward_graph)

    def forward(
        self, x: Tensor, bias: Tensor, masks: Masks, weights: Sequence[Tensor]
    ) -> tuple[Tensor, Kept]:
        """Return the (B, T, H) output and what the backward pass needs beside the input."""
        y, *values = self._forward(x, bias, *masks, *weights)
        kept = (None if name in self._forgotten else v for name, v in zip(VALUES, values, strict=True))
        return y, tuple(kept)

    def backward(
        self, dy: Tensor, x: Tensor, kept: Kept, bias: Tensor, masks: Masks, weights: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the gradient of the input and those of the weights, in their order."""
        dx, *gradients = self._backward(dy, x, *kept, bias, *masks, *weights)
        return dx, gradients

    def forward_graph(
        self, x: Tensor, bias: Tensor, on_probabilities: Any, on_attention: Any, on_mlp: Any, *weights: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the output, then VALUES."""
        qkv = self.project(x, weights)
        probabilities = self.attend(qkv, bias, x.shape)
        context = self.mix(qkv, probabilities, on_probabilities, x.shape)
        middle = self.leave_attention(x, context, on_attention, weights)
        inner = self.widen(middle, weights)
        gate = self.gate(inner)
        out = kernels.add_bias(self.products.nn(inner * gate, weights[OUT]), weights[OUT_BIAS])
        y = middle + kernels.dropped(out, on_mlp, self.keep_hidden).reshape(x.shape)
        return y, qkv, probabilities, context, middle, inner, gate

    def backward_graph(
        self, dy: Tensor, x: Tensor, qkv: Any, probabilities: Any, context: Any, middle: Any, inner: Any,
        gate: Any, bias: Tensor, on_probabilities: Any, on_attention: Any, on_mlp: Any, *weights: Tensor
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """Return the gradients of x and of the weights, computing again the values that are None."""
        if qkv is None:
            qkv = self.project(x, weights)
        if probabilities is None:
            probabilities = self.attend(qkv, bias, x.shape)
        if context is None:
            context = self.mix(qkv, probabilities, on_probabilities, x.shape)
        if middle is None:
            middle = self.leave_attention(x, context, on_attention, weights)
        if inner is None:
            inner = self.widen(middle, weights)
            gate = self.gate(inner)
        d_middle, of_mlp = self.mlp_grad(dy, middle, inner, gate, on_mlp, weights)
        d_out = kernels.dropped(d_middle, on_attention, self.keep_hidden)
        d_context = self.products.nt(d_out, weights[C_PROJ])
        d_qkv = self.core_grad(d_context, qkv, probabilities, context, on_probabilities, x.shape)
        normal, scale = kernels.normalize(x.reshape(d_middle.shape), self.epsilon)
        d_normed = self.products.nt(d_qkv, weights[C_ATTN])
        dx = d_middle + kernels.normalize_grad(d_normed * weights[LN_1], normal, scale)
        return (
            dx.reshape(x.shape),
            kernels.column_sum(d_normed * normal),
            kernels.column_sum(d_normed),
            self.products.tn(normal * weights[LN_1] + weights[LN_1_BIAS], d_qkv),
            kernels.column_sum(d_qkv),
            self.products.tn(context, d_out),
            kernels.column_sum(d_out),
            *of_mlp,
        )

    def project(self, x: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """Return [q|k|v] (R, 3H) of x (B, T, H)."""
        normal, _ = kernels.normalize(x.reshape(-1, x.shape[-1]), self.epsilon)
        return kernels.add_bias(
            self.products.nn(normal * weights[LN_1] + weights[LN_1_BIAS], weights[C_ATTN]),
            weights[C_ATTN_BIAS],
        )

    def attend(self, qkv: Tensor, bias: Tensor, shape: tuple[int, int, int]) -> Tensor:
        """Return the (B, N, T, T) attention probabilities, before dropout."""
        q, k, _ = kernels.split_heads(qkv, self.head_shape(shape))
        return kernels.softmax(self.products.batch_nt(q * self.scale, k) + bias)

    def mix(self, qkv: Tensor, probabilities: Tensor, mask: Any, shape: tuple[int, int, int]) -> Tensor:
        """Return the (R, H) mean of the values under the probabilities."""
        _, _, v = kernels.split_heads(qkv, self.head_shape(shape))
        weighted = kernels.dropped(probabilities, mask, self.keep_attention)
        return kernels.from_heads(self.products.batch_nn(weighted, v))

    def leave_attention(self, x: Tensor, context: Tensor, mask: Any, weights: tuple[Tensor, ...]) -> Tensor:
        """Return the residual stream (B, T, H) after attention."""
        out = kernels.add_bias(self.products.nn(context, weights[C_PROJ]), weights[C_PROJ_BIAS])
        return x + kernels.dropped(out, mask, self.keep_hidden).reshape(x.shape)

    def widen(self, middle: Tensor, weights: tuple[Tensor, ...]) -> Tensor:
        """Return the (R, F) input of the activation."""
        normal, _ = kernels.normalize(middle.reshape(-1, middle.shape[-1]), self.epsilon)
        return kernels.add_bias(
            self.products.nn(normal * weights[LN_2] + weights[LN_2_BIAS], weights[FC]), weights[FC_BIAS]
        )

    def head_shape(self, shape: tuple[int, int, int]) -> tuple[int, int, int, int]:
        """Return (B, T, N, D) from (B, T, H)."""
        b, t, h = shape
        return b, t, self.heads, h // self.heads

    def mlp_grad(
        self, dy: Tensor, middle: Tensor, inner: Tensor, gate: Tensor, mask: Any, weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the gradients of the stream (R, H) between the branches and of the last six weights."""
        rows = dy.reshape(-1, dy.shape[-1])
        d_out = kernels.dropped(rows, mask, self.keep_hidden)
        d_inner = self.products.nt(d_out, weights[OUT]) * self.slope(inner, gate)
        d_normed = self.products.nt(d_inner, weights[FC])
        normal, scale = kernels.normalize(middle.reshape(rows.shape), self.epsilon)
        d_middle = rows + kernels.normalize_grad(d_normed * weights[LN_2], normal, scale)
        return d_middle, (
            kernels.column_sum(d_normed * normal),
            kernels.column_sum(d_normed),
            self.products.tn(normal * weights[LN_2] + weights[LN_2_BIAS], d_inner),
            kernels.column_sum(d_inner),
            self.products.tn(inner * gate, d_out),
            kernels.column_sum(d_out),
        )

    def core_grad(
        self, dy: Tensor, qkv: Tensor, probabilities: Tensor, context: Tensor, mask: Any,
        shape: tuple[int, int, int]
    ) -> Tensor:  # fmt: skip
        """Return the gradient of [q|k|v] (R, 3H) from that of the context (R, H).

        The softmax needs the row sums of p dp, which equal those of y dy, D numbers a row instead
        of T: Dao et al., "FlashAttention", appendix B.2. Dropout changes nothing in that.
        """
        heads = self.head_shape(shape)
        q, k, v = kernels.split_heads(qkv, heads)
        d_mixed = kernels.to_heads(dy, heads)
        row_sums = kernels.row_dot(d_mixed, kernels.to_heads(context, heads))
        weighted = kernels.dropped(probabilities, mask, self.keep_attention)
        d_v = self.products.batch_tn(weighted, d_mixed)
        d_weighted = self.products.batch_nt(d_mixed, v)
        d_probabilities = kernels.dropped(d_weighted, mask, self.keep_attention)
        d_scores = probabilities * (d_probabilities - row_sums)
        d_q = self.products.batch_nn(d_scores, k * self.scale)
        d_k = self.products.batch_tn(d_scores, q * self.scale)
        return ops.concat((kernels.from_heads(d_q), kernels.from_heads(d_k), kernels.from_heads(d_v)), 1)
