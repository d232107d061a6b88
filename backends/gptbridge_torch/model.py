"""GPT-2's transformer in torch: pre-LayerNorm, learned positions. Shapes: B samples, T tokens, H wide.

Modules carry the canonical names, so that `weights` need only know what is transposed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptbridge_specs import ModelSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_erf": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def dropout(probability: float) -> nn.Module:
    """Return a dropout that costs nothing at probability 0."""
    return nn.Dropout(probability) if probability else nn.Identity()


class Recompute:
    """Calls a function and, where the spec says so, forgets its activations until the backward pass."""

    def __init__(self, granularity: str, model: ModelSpec) -> None:
        self._granularity = granularity
        self._random = model.hidden_dropout_prob > 0 or model.attention_probs_dropout_prob > 0

    def __call__(self, granularity: str, function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """Return `function(*inputs)`, recomputed if `granularity` is the one that is asked for."""
        if granularity != self._granularity or not torch.is_grad_enabled():
            return function(*inputs)
        recomputed: Any = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=self._random)
        return recomputed  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, model: ModelSpec, recompute: Recompute) -> None:
        super().__init__()
        self.head_size = model.head_size
        self.dropout_prob = model.attention_probs_dropout_prob
        self.recompute = recompute
        self.c_attn = nn.Linear(model.hidden_size, 3 * model.hidden_size)
        self.c_proj = nn.Linear(model.hidden_size, model.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Attend; x and the result are (B, T, H)."""
        q, k, v = self.c_attn(x).unflatten(-1, (3, -1, self.head_size)).permute(2, 0, 3, 1, 4)
        y = self.recompute("core_attn", self._attend, q, k, v)
        return self.c_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropout_p = self.dropout_prob if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p, is_causal=True)


class FeedForward(nn.Module):
    """Two linear layers around the activation."""

    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.c_fc = nn.Linear(model.hidden_size, model.ffn_size)
        self.activation = ACTIVATIONS[model.activation]
        self.c_proj = nn.Linear(model.ffn_size, model.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Widen, activate, narrow; x and the result are (B, T, H)."""
        return self.c_proj(self.activation(self.c_fc(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
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
        return x + self.dropout(self.mlp(self.ln_2(x)))  # type: ignore[no-any-return]


class GPT(nn.Module):
    """The whole model but for the product with `head`, which makes logits of its result.

    `stream_dtype` is the type of the residual stream between the blocks.
    """

    def __init__(self, model: ModelSpec, recompute: str, stream_dtype: torch.dtype) -> None:
        super().__init__()
        self.stream_dtype = stream_dtype
        self.recompute = Recompute(recompute, model)
        self.wte = nn.Embedding(model.vocab_size, model.hidden_size)
        self.wpe = nn.Embedding(model.max_position_embeddings, model.hidden_size)
        self.dropout = dropout(model.hidden_dropout_prob)
        self.h = nn.ModuleList(Block(model, self.recompute) for _ in range(model.num_layers))
        self.ln_f = nn.LayerNorm(model.hidden_size, model.layernorm_epsilon)
        if not model.tie_word_embeddings:
            self.lm_head = nn.Linear(model.hidden_size, model.vocab_size, bias=False)
        self.tied = model.tie_word_embeddings

    @property
    def head(self) -> nn.Parameter:
        """The output projection, (V, H)."""
        return self.wte.weight if self.tied else self.lm_head.weight  # type: ignore[return-value]

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the final hidden states (B, T, H) of token ids (B, T)."""
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        x = self.dropout(x.to(self.stream_dtype))
        for block in self.h:
            x = self.recompute("full", block, x)
        return self.ln_f(x)  # type: ignore[no-any-return]
