"""The parts of a transformer block in Paddle. Shapes: B samples, T tokens, H wide, N heads of D."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.distributed.fleet.utils import recompute

from gptbridge_paddle.cache import Cache
from gptbridge_specs import ModelSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate=True),
    "gelu_erf": F.gelu,
    "quick_gelu": lambda x: x * F.sigmoid(1.702 * x),
}


def norm(model: ModelSpec) -> nn.Layer:
    """Return the normalisation of the residual stream."""
    return nn.LayerNorm(model.hidden_size, model.layernorm_epsilon)


def dropout(probability: float) -> nn.Layer:
    """Return a dropout that costs nothing at probability 0."""
    return nn.Dropout(probability) if probability else nn.Identity()


class Linear(nn.Linear):
    """A linear layer, with what `adapt` put beside it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        # zeros: no initial weights are drawn, they are written
        super().__init__(inputs, outputs, weight_attr=nn.initializer.Constant(0.0))
        self.adapters: nn.Layer | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return (..., out) of (..., in)."""
        y = super().forward(x)
        return y if self.adapters is None else self.adapters(x, y)


def embedding(rows: int, width: int) -> nn.Layer:
    """Return an embedding of zeros, as above."""
    return nn.Embedding(rows, width, weight_attr=nn.initializer.Constant(0.0))


class Recompute:
    """Calls a function and, where the spec says so, forgets its activations until the backward pass."""

    def __init__(self, granularity: str, random: bool) -> None:
        self._granularity = granularity
        self._random = random  # there is dropout

    def __call__(self, granularity: str, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Return `function(*inputs)`, recomputed if `granularity` is the one that is asked for."""
        if granularity != self._granularity or not paddle.is_grad_enabled():
            return function(*inputs)
        # The reentrant form loses the gradients when no input needs one.
        return recompute(function, *inputs, use_reentrant=False, preserve_rng_state=self._random)


class Attention(nn.Layer):
    """Causal self-attention of layer `layer`."""

    def __init__(self, model: ModelSpec, layer: int, recompute: Recompute) -> None:
        super().__init__()
        self.layer = layer
        self.num_heads = model.num_attention_heads
        self.head_size = model.head_size
        self.dropout_prob = model.attention_probs_dropout_prob
        self.recompute = recompute
        self.c_attn = Linear(model.hidden_size, 3 * model.hidden_size)
        self.c_proj = Linear(model.hidden_size, model.hidden_size)

    def forward(self, x: Tensor, cache: Cache | None = None) -> Tensor:
        """Attend; x and the result are (B, T, H). With a cache, to what it holds as well."""
        qkv = self.c_attn(x)
        if cache is None:
            y = self.recompute("core_attn", self._attend, qkv)
        else:
            q, k, v = self._by_head(qkv)
            k, v = cache.update(self.layer, k, v)
            y = self._mix(q, k, v, cache.mask)
        return self.c_proj(y)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Return (B, T, H) from [q|k|v], (B, T, 3H)."""
        if qkv.place.is_cpu_place():
            q, k, v = self._by_head(qkv)
            return self._mix(q, k, v, causal_mask(qkv.shape[1]))
        return self._attend_fused(qkv)

    def _attend_fused(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.reshape([*qkv.shape[:2], 3, self.num_heads, self.head_size]).unbind(2)
        attended = F.scaled_dot_product_attention(
            q, k, v, dropout_p=self.dropout_prob, is_causal=True, training=self.training
        )
        return attended.flatten(2)

    def _by_head(self, qkv: Tensor) -> list[Tensor]:
        """Return q, k and v, (N x B, T, D) each, from [q|k|v], (B, T, 3H)."""
        # Heads go to the batch axis by split and concat, which copy whole rows. The usual transpose of
        # (B, T, N, D), inside Paddle's own attention too, takes seven times as long on a CPU.
        heads = paddle.split(qkv, 3 * self.num_heads, axis=-1)
        return list(paddle.split(paddle.concat(heads), 3))

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """Return (B, T, H) from q, k and v by head; `mask`, (T, S) or (B, T, S), is added to the scores."""
        scores = paddle.matmul(q * self.head_size**-0.5, k, transpose_y=True)
        weights = F.softmax(scores.reshape([-1, *mask.shape]) + mask).reshape(scores.shape)
        weights = F.dropout(weights, self.dropout_prob, training=self.training)
        return paddle.concat(paddle.split(paddle.matmul(weights, v), self.num_heads), axis=-1)


@lru_cache(maxsize=8)
def causal_mask(length: int) -> Tensor:
    """Return the (T, T) term that hides later tokens: 0 on and below the diagonal, -inf above."""
    return paddle.triu(paddle.full([length, length], -math.inf, "float32"), diagonal=1)


class FeedForward(nn.Layer):
    """Two linear layers around the activation."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.c_fc = Linear(model.hidden_size, model.ffn_size)
        self.activation = ACTIVATIONS[model.activation]
        self.c_proj = Linear(model.ffn_size, model.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Widen, activate, narrow; x and the result are (B, T, H)."""
        return self.c_proj(self.activation(self.c_fc(x)))
