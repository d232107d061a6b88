"""GPT-2's transformer in Paddle: pre-LayerNorm, learned positions. Shapes: B samples, T tokens, H wide.

Layers carry the canonical names, and Paddle's Linear is (in, out) as canonical weights are.
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


def dropout(probability: float) -> nn.Layer:
    """Return a dropout that costs nothing at probability 0."""
    return nn.Dropout(probability) if probability else nn.Identity()


def linear(inputs: int, outputs: int) -> nn.Layer:
    """Return a linear layer of zeros: no initial weights are drawn, they are imported."""
    return nn.Linear(inputs, outputs, weight_attr=nn.initializer.Constant(0.0))


def embedding(rows: int, width: int) -> nn.Layer:
    """Return an embedding of zeros, as above."""
    return nn.Embedding(rows, width, weight_attr=nn.initializer.Constant(0.0))


@lru_cache(maxsize=8)
def causal_mask(length: int) -> Tensor:
    """Return the (T, T) term that hides later tokens: 0 on and below the diagonal, -inf above."""
    return paddle.triu(paddle.full([length, length], -math.inf, "float32"), diagonal=1)


class Recompute:
    """Calls a function and, where the spec says so, forgets its activations until the backward pass."""

    def __init__(self, granularity: str, model: ModelSpec) -> None:
        self._granularity = granularity
        self._random = model.hidden_dropout_prob > 0 or model.attention_probs_dropout_prob > 0

    def __call__(self, granularity: str, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Return `function(*inputs)`, recomputed if `granularity` is the one that is asked for."""
        if granularity != self._granularity or not paddle.is_grad_enabled():
            return function(*inputs)
        # The reentrant form loses the gradients when no input needs one.
        return recompute(function, *inputs, use_reentrant=False, preserve_rng_state=self._random)


class Attention(nn.Layer):
    """Causal self-attention."""

    def __init__(self, model: ModelSpec, recompute: Recompute) -> None:
        super().__init__()
        self.num_heads = model.num_attention_heads
        self.head_size = model.head_size
        self.dropout_prob = model.attention_probs_dropout_prob
        self.recompute = recompute
        self.c_attn = linear(model.hidden_size, 3 * model.hidden_size)
        self.c_proj = linear(model.hidden_size, model.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Attend; x and the result are (B, T, H)."""
        return self.c_proj(self.recompute("core_attn", self._attend, self.c_attn(x)))

    def _attend(self, qkv: Tensor) -> Tensor:
        """Return (B, T, H) from [q|k|v], (B, T, 3H)."""
        return self._attend_on_cpu(qkv) if qkv.place.is_cpu_place() else self._attend_fused(qkv)

    def _attend_fused(self, qkv: Tensor) -> Tensor:
        shape = [*qkv.shape[:2], self.num_heads, self.head_size]
        q, k, v = (x.reshape(shape) for x in paddle.split(qkv, 3, axis=-1))
        attended = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout_prob, is_causal=True, training=self.training
        )
        return attended.flatten(2)

    def _attend_on_cpu(self, qkv: Tensor) -> Tensor:
        # Heads go to the batch axis by split and concat, which copy whole rows. The usual transpose of
        # (B, T, heads, head size), inside Paddle's own attention too, takes seven times as long.
        heads = paddle.split(qkv, 3 * self.num_heads, axis=-1)
        q, k, v = paddle.split(paddle.concat(heads), 3)  # (heads x B, T, head size)
        scores = paddle.matmul(q * self.head_size**-0.5, k, transpose_y=True)
        weights = F.softmax(scores + causal_mask(qkv.shape[1]))
        weights = F.dropout(weights, self.dropout_prob, training=self.training)
        return paddle.concat(paddle.split(paddle.matmul(weights, v), self.num_heads), axis=-1)


class FeedForward(nn.Layer):
    """Two linear layers around the activation."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.c_fc = linear(model.hidden_size, model.ffn_size)
        self.activation = ACTIVATIONS[model.activation]
        self.c_proj = linear(model.ffn_size, model.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Widen, activate, narrow; x and the result are (B, T, H)."""
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Layer):
    """One transformer layer."""

    def __init__(self, model: ModelSpec, recompute: Recompute) -> None:
        super().__init__()
        self.recompute = recompute
        self.ln_1 = nn.LayerNorm(model.hidden_size, model.layernorm_epsilon)
        self.attn = Attention(model, recompute)
        self.ln_2 = nn.LayerNorm(model.hidden_size, model.layernorm_epsilon)
        self.mlp = FeedForward(model)
        self.dropout = dropout(model.hidden_dropout_prob)

    def forward(self, x: Tensor) -> Tensor:
        """Add attention, then feed-forward, to the residual stream; x and the result are (B, T, H)."""
        x = x + self.dropout(self.recompute("full_attn", self.attn, self.ln_1(x)))
        return x + self.dropout(self.mlp(self.ln_2(x)))


class GPT(nn.Layer):
    """The whole model but for the product with `head`, which makes logits of its result."""

    def __init__(self, model: ModelSpec, granularity: str) -> None:
        super().__init__()
        self.recompute = Recompute(granularity, model)
        self.wte = embedding(model.vocab_size, model.hidden_size)
        self.wpe = embedding(model.max_position_embeddings, model.hidden_size)
        self.dropout = dropout(model.hidden_dropout_prob)
        self.h = nn.LayerList([Block(model, self.recompute) for _ in range(model.num_layers)])
        self.ln_f = nn.LayerNorm(model.hidden_size, model.layernorm_epsilon)
        if not model.tie_word_embeddings:
            self.lm_head = embedding(model.vocab_size, model.hidden_size)
        self.tied = model.tie_word_embeddings

    @property
    def head(self) -> Tensor:
        """The output projection, (V, H)."""
        return self.wte.weight if self.tied else self.lm_head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the final hidden states (B, T, H) of token ids (B, T)."""
        x = self.dropout(self.wte(tokens) + self.wpe.weight[: tokens.shape[1]])
        for block in self.h:
            x = self.recompute("full", block, x)
        return self.ln_f(x)
