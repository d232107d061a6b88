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

from gptbridge.rules.dropout import site_seed
from gptbridge_paddle.cache import Cache
from gptbridge_paddle.collectives import Cut, enter, leave
from gptbridge_paddle.loss import Words
from gptbridge_specs import ModelSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate=True),
    "gelu_erf": F.gelu,
    "quick_gelu": lambda x: x * F.sigmoid(1.702 * x),
}


def norm(model: ModelSpec) -> nn.Layer:
    """Return the normalisation of the residual stream."""
    return nn.LayerNorm(model.hidden_size, model.layernorm_epsilon)


def embedding(rows: int, width: int) -> nn.Layer:
    """Return an embedding of zeros: no initial weights are drawn, they are written."""
    return nn.Embedding(rows, width, weight_attr=nn.initializer.Constant(0.0))


class Column(nn.Linear):
    """A linear layer, of zeros as above, of which each tensor rank has some of the outputs.

    Beside it is what `adapt` put there.
    """

    def __init__(self, inputs: int, outputs: int, cut: Cut) -> None:
        super().__init__(inputs, outputs, weight_attr=nn.initializer.Constant(0.0))
        self.cut = cut
        self.adapters: nn.Layer | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return this rank's part of (B, T, out) of the stream (B, T, in)."""
        x = enter(x, self.cut)
        y = super().forward(x)
        return y if self.adapters is None else self.adapters(x, y)


class Row(nn.Linear):
    """A linear layer, of zeros as above, of which each tensor rank has some of the inputs.

    Beside it is what `adapt` put there.
    """

    def __init__(self, inputs: int, outputs: int, cut: Cut) -> None:
        super().__init__(inputs, outputs, weight_attr=nn.initializer.Constant(0.0))
        self.cut = cut
        self.adapters: nn.Layer | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream (B, T, out) of this rank's part of (B, T, in)."""
        if self.cut.group is None:
            y = super().forward(x)
            return y if self.adapters is None else self.adapters(x, y)
        return leave(paddle.matmul(x, self.weight), self.cut) + self.bias  # once, not by every rank


def embed(tokens: Tensor, table: nn.Layer, words: Words, cut: Cut) -> Tensor:
    """Return the stream (B, T, H) of token ids (B, T), of which this rank's `table` has `words`."""
    if cut.group is None:
        return table(tokens)
    mine, rows = words.find(tokens)
    return leave(table(rows) * mine.unsqueeze(2).astype("float32"), cut)


class Dropout(nn.Layer):
    """Dropout of the stream at one site, by the seed of a micro-batch; it costs nothing at probability 0."""

    def __init__(self, probability: float, layer: int | None, site: str, cut: Cut) -> None:
        super().__init__()
        self.probability = probability
        self.site = layer, site
        self.cut = cut

    def forward(self, x: Tensor, seed: int) -> Tensor:
        """Drop; x (B, T, H) is the whole stream or this rank's part of it."""
        if not (self.probability and self.training):
            return x
        length = self.cut.length or x.shape[1]
        start = self.cut.part(length)[0] if self.cut.length else 0
        return dropped(x, self.probability, site_seed(seed, *self.site), 1, start, length)


def dropped(x: Tensor, probability: float, seed: int, axis: int, start: int, size: int) -> Tensor:
    """Return x with dropout drawn from `seed` alone.

    x are the entries from `start` on of `size` along `axis`: the mask is drawn for all of them.
    """
    paddle.seed(seed)  # a generator on CPU takes the low 32 bits of these 63
    if x.shape[axis] == size:
        return F.dropout(x, probability)
    whole = list(x.shape)
    whole[axis] = size
    mask = F.dropout(paddle.ones(whole), probability)
    return x * paddle.slice(mask, [axis], [start], [start + x.shape[axis]])


class Recompute:
    """Calls a function and, where the spec says so, forgets its activations until the backward pass."""

    def __init__(self, granularity: str) -> None:
        self._granularity = granularity

    def __call__(self, granularity: str, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Return `function(*inputs)`, recomputed if `granularity` is the one that is asked for."""
        if granularity != self._granularity or not paddle.is_grad_enabled():
            return function(*inputs)
        # The reentrant form loses the gradients when no input needs one. What draws, seeds itself.
        return recompute(function, *inputs, use_reentrant=False, preserve_rng_state=False)


class Attention(nn.Layer):
    """Causal self-attention of layer `layer`: this tensor rank's share of the N heads."""

    def __init__(self, model: ModelSpec, layer: int, recompute: Recompute, cut: Cut) -> None:
        super().__init__()
        self.layer = layer
        self.all_heads = model.num_attention_heads
        self.first_head, stop = cut.part(self.all_heads)
        self.num_heads = stop - self.first_head
        self.head_size = model.head_size
        self.dropout_prob = model.attention_probs_dropout_prob
        self.recompute = recompute
        width = self.num_heads * self.head_size
        self.c_attn = Column(model.hidden_size, 3 * width, cut)
        self.c_proj = Row(width, model.hidden_size, cut)

    def forward(
        self, x: Tensor, cache: Cache | None = None, seed: int = 0, hidden: Tensor | None = None
    ) -> Tensor:
        """Attend; x and the result are (B, T, H). With a cache, to what it holds as well.

        `hidden` (B, T, T) is added to the scores; by default what hides later tokens.
        """
        qkv = self.c_attn(x)
        if cache is None:
            y = self.recompute("core_attn", self._attend, qkv, seed, hidden)
        else:
            q, k, v = self._by_head(qkv)
            k, v = cache.update(self.layer, k, v)
            y = self._mix(q, k, v, cache.mask, seed)
        return self.c_proj(y)

    def _attend(self, qkv: Tensor, seed: int, hidden: Tensor | None = None) -> Tensor:
        """Return (B, T, N x D) from [q|k|v], (B, T, 3 x N x D)."""
        if qkv.place.is_cpu_place():
            q, k, v = self._by_head(qkv)
            return self._mix(q, k, v, causal_mask(qkv.shape[1]) if hidden is None else hidden, seed)
        return self._attend_fused(qkv, seed, hidden)

    def _attend_fused(self, qkv: Tensor, seed: int, hidden: Tensor | None = None) -> Tensor:
        if self.dropout_prob and self.training:  # the kernel draws by itself: other masks on other heads
            paddle.seed(site_seed(seed, self.layer, f"attention from head {self.first_head}"))
        q, k, v = qkv.reshape([*qkv.shape[:2], 3, self.num_heads, self.head_size]).unbind(2)
        attended = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if hidden is None else hidden.unsqueeze(1).astype(q.dtype),
            dropout_p=self.dropout_prob,
            is_causal=hidden is None,
            training=self.training,
        )
        return attended.flatten(2)

    def _by_head(self, qkv: Tensor) -> list[Tensor]:
        """Return q, k and v, (N x B, T, D) each, from [q|k|v], (B, T, 3 x N x D)."""
        if qkv.shape[1] == 1:
            by_head = qkv.reshape([-1, 3 * self.num_heads, self.head_size]).transpose([1, 0, 2])
            return list(paddle.split(by_head.reshape([-1, 1, self.head_size]), 3))
        # Heads go to the batch axis by split and concat, which copy whole rows. The usual transpose of
        # (B, T, N, D), inside Paddle's own attention too, takes seven times as long on a CPU, but at T = 1.
        heads = paddle.split(qkv, 3 * self.num_heads, axis=-1)
        return list(paddle.split(paddle.concat(heads), 3))

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, seed: int) -> Tensor:
        """Return (B, T, N x D) from q, k and v by head; the scores get `mask`, (T, S) or (B, T, S), added."""
        scores = paddle.matmul(q * self.head_size**-0.5, k, transpose_y=True)
        weights = F.softmax(scores.reshape([-1, *mask.shape]) + mask).reshape(scores.shape)
        if self.dropout_prob and self.training:
            samples, site = weights.shape[0] // self.num_heads, site_seed(seed, self.layer, "attention")
            start, size = self.first_head * samples, self.all_heads * samples
            weights = dropped(weights, self.dropout_prob, site, 0, start, size)
        return paddle.concat(paddle.split(paddle.matmul(weights, v), self.num_heads), axis=-1)


@lru_cache(maxsize=8)
def causal_mask(length: int) -> Tensor:
    """Return the (T, T) term that hides later tokens: 0 on and below the diagonal, -inf above."""
    return paddle.triu(paddle.full([length, length], -math.inf, "float32"), diagonal=1)


def apart(starts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions (B, T) of tokens whose records begin at `starts` (B, T), and what hides others.

    The latter, (B, T, T), is 0 for a token and those before it in its record, else -inf.
    """
    places, length = paddle.arange(starts.shape[1], dtype=starts.dtype), starts.shape[1]
    earlier = (places < starts.unsqueeze(2)).astype("float32") * -1e9
    return places - starts, earlier + causal_mask(length)


class FeedForward(nn.Layer):
    """Two linear layers around the activation: this tensor rank's share of their width."""

    def __init__(self, model: ModelSpec, cut: Cut) -> None:
        super().__init__()
        start, stop = cut.part(model.ffn_size)
        self.c_fc = Column(model.hidden_size, stop - start, cut)
        self.activation = ACTIVATIONS[model.activation]
        self.c_proj = Row(stop - start, model.hidden_size, cut)

    def forward(self, x: Tensor) -> Tensor:
        """Widen, activate, narrow; x and the result are (B, T, H)."""
        return self.c_proj(self.activation(self.c_fc(x)))
