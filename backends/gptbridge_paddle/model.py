"""GPT on Paddle: pre-LayerNorm blocks, learned positions, tied or separate head.

Sublayers carry the canonical names, so that `named_parameters` and the canonical table agree.
Shapes in comments: B samples, T tokens, H hidden size, N heads, D head size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.distributed.fleet.utils import recompute

from gptbridge_specs import ModelSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate=True),
    "gelu_erf": F.gelu,
    "quick_gelu": lambda x: x * F.sigmoid(1.702 * x),
}


@lru_cache(maxsize=8)
def causal_mask(length: int) -> Tensor:
    """Return the (T, T) term that hides later positions: 0 on and below the diagonal, -inf above."""
    return paddle.triu(paddle.full([length, length], float("-inf"), "float32"), diagonal=1)


class Attention(nn.Layer):
    """Causal self-attention over `num_heads` heads."""

    def __init__(self, model: ModelSpec, recompute_core: bool) -> None:
        super().__init__()
        self.num_heads = model.num_attention_heads
        self.head_size = model.head_size
        self.dropout = model.attention_probs_dropout_prob
        self.recompute_core = recompute_core
        self.c_attn = _linear(model.hidden_size, 3 * model.hidden_size)
        self.c_proj = _linear(model.hidden_size, model.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, H) from (B, T, H)."""
        qkv = self.c_attn(x)
        if self.recompute_core and self.training:
            return self.c_proj(recompute(self.core, qkv, use_reentrant=False))
        return self.c_proj(self.core(qkv))

    def core(self, qkv: Tensor) -> Tensor:
        """Attend: (B, T, H) from [q|k|v] (B, T, 3H)."""
        # One piece a head, stacked on the batch axis: on CPU Paddle's split and concat copy whole rows
        # of D numbers, seven times faster than its transpose of (B, T, N, D).
        pieces = paddle.split(qkv, 3 * self.num_heads, axis=-1)
        q, k, v = paddle.split(paddle.concat(pieces, axis=0), 3, axis=0)  # (N B, T, D) each
        scores = paddle.matmul(q * (1 / math.sqrt(self.head_size)), k, transpose_y=True)
        weights = F.softmax(scores + causal_mask(qkv.shape[1]), axis=-1)  # (N B, T, T)
        weights = F.dropout(weights, self.dropout, training=self.training)
        return paddle.concat(paddle.split(paddle.matmul(weights, v), self.num_heads, axis=0), axis=-1)


class FeedForward(nn.Layer):
    """Two linear layers with an activation between."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[model.activation]
        self.c_fc = _linear(model.hidden_size, model.ffn_size)
        self.c_proj = _linear(model.ffn_size, model.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, H) from (B, T, H)."""
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Layer):
    """One pre-LayerNorm transformer block."""

    def __init__(self, model: ModelSpec, granularity: str) -> None:
        super().__init__()
        self.dropout = model.hidden_dropout_prob
        self.recompute_attention = granularity == "full_attn"
        self.ln_1 = _layer_norm(model)
        self.attn = Attention(model, recompute_core=granularity == "core_attn")
        self.ln_2 = _layer_norm(model)
        self.mlp = FeedForward(model)

    def forward(self, x: Tensor) -> Tensor:
        """Return (B, T, H) from (B, T, H)."""
        normed = self.ln_1(x)
        if self.recompute_attention and self.training:
            attended = recompute(self.attn, normed, use_reentrant=False)
        else:
            attended = self.attn(normed)
        x = x + F.dropout(attended, self.dropout, training=self.training)
        return x + F.dropout(self.mlp(self.ln_2(x)), self.dropout, training=self.training)


class GPT(nn.Layer):
    """The whole model; its weights are zeros until imported."""

    def __init__(self, model: ModelSpec, granularity: str) -> None:
        super().__init__()
        self.dropout = model.hidden_dropout_prob
        self.recompute_blocks = granularity == "full"
        self.wte = _embedding(model.vocab_size, model.hidden_size)
        self.wpe = _embedding(model.max_position_embeddings, model.hidden_size)
        self.h = nn.LayerList([Block(model, granularity) for _ in range(model.num_layers)])
        self.ln_f = _layer_norm(model)
        tied = model.tie_word_embeddings
        self.lm_head = None if tied else _embedding(model.vocab_size, model.hidden_size)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the (B, T, H) hidden states of (B, T) tokens, after the last LayerNorm."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        x = F.dropout(x, self.dropout, training=self.training)
        for block in self.h:
            if self.recompute_blocks and self.training:
                x = recompute(block, x, use_reentrant=False)
            else:
                x = block(x)
        return self.ln_f(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return (..., V) logits of (..., H) hidden states."""
        head = self.wte if self.lm_head is None else self.lm_head
        return paddle.matmul(hidden, head.weight, transpose_y=True)

    def token_losses(self, tokens: Tensor, labels: Tensor, reduction: str) -> Tensor:
        """Return the negative log likelihood of (B, T) labels, 0 where a label is IGNORED.

        `reduction` is none, for (B, T), or sum, for their total.
        """
        logits = self.logits(self(tokens)).astype("float32")
        return F.cross_entropy(logits, labels, reduction=reduction, ignore_index=IGNORED)


IGNORED = -100  # a label that takes no part in the loss


def _zeros() -> paddle.ParamAttr:
    return paddle.ParamAttr(initializer=nn.initializer.Constant(0.0))


def _linear(inputs: int, outputs: int) -> nn.Layer:
    return nn.Linear(inputs, outputs, weight_attr=_zeros(), bias_attr=_zeros())


def _embedding(rows: int, width: int) -> nn.Layer:
    return nn.Embedding(rows, width, weight_attr=_zeros())


def _layer_norm(model: ModelSpec) -> nn.Layer:
    return nn.LayerNorm(model.hidden_size, epsilon=model.layernorm_epsilon)
