"""The parts of a transformer block in torch. Shapes: B samples, T tokens, H wide, N heads of D."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gptbridge.rules.dropout import site_seed
from gptbridge_specs import ModelSpec
from gptbridge_torch.cache import Cache
from gptbridge_torch.collectives import Cut, enter, leave
from gptbridge_torch.loss import Words

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_erf": F.gelu,
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


def norm(model: ModelSpec) -> nn.Module:
    """Return the normalisation of the residual stream."""
    return nn.LayerNorm(model.hidden_size, model.layernorm_epsilon)


def table(rows: int, width: int) -> nn.Embedding:
    """Return an embedding whose weights are written later.

    `nn.Embedding` would draw them, and a draw without memory imports torch's compiler: a second.
    """
    return nn.Embedding(rows, width, _weight=torch.empty(rows, width))


class Dropout(nn.Module):
    """Dropout of the residual stream at one site, drawn from a micro-batch's seed and the site alone.

    Without a seed it goes on where the device's generator stands: a compiled model has one for all sites.
    """

    def __init__(self, probability: float, layer: int | None, site: str, cut: Cut) -> None:
        super().__init__()
        self.probability, self.layer, self.site, self.cut = probability, layer, site, cut

    def forward(self, x: Tensor, seed: int | None) -> Tensor:
        """Return `x` with its dropout: of the whole stream's, the part that this rank has."""
        if not self.probability or not self.training:
            return x
        sow(x.device, seed, self.layer, self.site)
        if self.cut.length is None:
            return F.dropout(x, self.probability)
        whole = F.dropout(x.new_ones((len(x), self.cut.length, x.shape[2])), self.probability)
        start, stop = self.cut.part(self.cut.length)
        return x * whole[:, start:stop]


def sow(device: torch.device, seed: int | None, layer: int | None, site: str) -> None:
    """Seed what the next dropout on `device` draws."""
    if seed is None:
        return
    drawn = site_seed(seed, layer, site)
    if device.type == "cpu":
        torch.default_generator.manual_seed(drawn)  # torch.manual_seed goes through all kinds of devices
    else:
        torch.get_device_module(device).manual_seed(drawn)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x W^T + b for x (..., in) and W (out, in).

    A few rows on a CPU are oneDNN's: MKL copies a weight before it multiplies with it. GPT-2's 12 layers and
    head for 8 rows take it 59 ms, else 98.
    """
    if torch.is_grad_enabled() or x.device.type != "cpu" or not x.dtype == weight.dtype == torch.float32:
        return F.linear(x, weight, bias)  # also while a model is exported, when x has no number of rows
    rows = x.numel() // x.shape[-1]
    if not 4 <= rows <= 24 or not torch._C._has_mkldnn:
        return F.linear(x, weight, bias)
    y: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return y


class Column(nn.Linear):
    """A linear layer of which each tensor rank has some of the outputs, with what `adapt` put beside it."""

    def __init__(self, inputs: int, outputs: int, cut: Cut) -> None:
        super().__init__(inputs, outputs)
        self.cut = cut
        self.adapters: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return this rank's part of (B, T, out) of the stream (B, T, in)."""
        x = enter(x, self.cut)
        y = product(x, self.weight, self.bias)
        return y if self.adapters is None else self.adapters(x, y)


class Row(nn.Linear):
    """A linear layer of which each tensor rank has some of the inputs, with what `adapt` put beside it."""

    def __init__(self, inputs: int, outputs: int, cut: Cut) -> None:
        super().__init__(inputs, outputs)
        self.cut = cut
        self.adapters: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Return the stream (B, T, out) of this rank's part of (B, T, in)."""
        if self.cut.group is None:
            y = product(x, self.weight, self.bias)
            return y if self.adapters is None else self.adapters(x, y)
        y = leave(product(x, self.weight), self.cut)
        return y + self.bias.to(y.dtype)  # once, not by every rank


def embed(tokens: Tensor, weight: Tensor, words: Words, cut: Cut) -> Tensor:
    """Return the stream (B, T, H) of token ids (B, T), of which this rank's `weight` has `words`."""
    if cut.group is None:
        return F.embedding(tokens, weight)
    mine, rows = words.find(tokens)
    return leave(F.embedding(rows, weight) * mine[..., None], cut)


class Recompute:
    """Calls a function and, where the spec says so, forgets its activations until the backward pass."""

    def __init__(self, granularity: str, random: bool) -> None:
        self._granularity = granularity
        self._random = random  # there is dropout

    def __call__(self, granularity: str, function: Callable[..., Tensor], *inputs: Any) -> Tensor:
        """Return `function(*inputs)`, recomputed if `granularity` is the one that is asked for."""
        if granularity != self._granularity or not torch.is_grad_enabled():
            return function(*inputs)
        recomputed: Any = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=self._random)
        return recomputed  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Causal self-attention of layer `layer`."""

    def __init__(self, model: ModelSpec, layer: int, recompute: Recompute, cut: Cut) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.head_size = model.num_attention_heads, model.head_size
        self.dropout_prob = model.attention_probs_dropout_prob
        self.recompute = recompute
        self.cut = cut
        self.c_attn = Column(model.hidden_size, 3 * model.hidden_size, cut)
        self.c_proj = Row(model.hidden_size, model.hidden_size, cut)

    def forward(
        self, x: Tensor, cache: Cache | None = None, seed: int | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """Attend; x and the result are (B, T, H). With a cache, to what it holds as well.

        `seen` (B, 1, T, T) says which tokens each one sees; by default itself and all before.
        """
        q, k, v = self.c_attn(x).unflatten(-1, (3, -1, self.head_size)).permute(2, 0, 3, 1, 4)
        if cache is None:
            y = self.recompute("core_attn", self._attend, q, k, v, seed, seen)
        else:
            k, v = cache.update(self.layer, k, v)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=cache.mask)
        return self.c_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, seed: int | None, seen: Tensor | None = None
    ) -> Tensor:
        dropout_p = self.dropout_prob if self.training else 0.0
        shared = dropout_p > 0 and self.cut.degree > 1
        if shared and q.device.type == "cpu":
            return self._attend_in_part(q, k, v, seed, seen, dropout_p)
        if dropout_p:  # a fused kernel draws by itself: a rank for its heads alone
            sow(q.device, seed, self.layer, f"attention of rank {self.cut.index}" if shared else "attention")
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=seen, dropout_p=dropout_p, is_causal=seen is None
        )

    def _attend_in_part(
        self, q: Tensor, k: Tensor, v: Tensor, seed: int | None, seen: Tensor | None, dropout_p: float
    ) -> Tensor:
        """Attend with this rank's part of the dropout of all heads, as a CPU draws it for them together."""
        sow(q.device, seed, self.layer, "attention")
        start, stop = self.cut.part(self.heads)
        whole = F.dropout(q.new_ones((len(q), self.heads, q.shape[2], k.shape[2])), dropout_p)
        scores = q @ k.transpose(-1, -2) * self.head_size**-0.5
        if seen is None:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
        weights: Tensor = scores.masked_fill(~seen, -torch.inf).softmax(-1) * whole[:, start:stop]
        return weights.to(v.dtype) @ v


def apart(starts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the positions (B, T) of tokens whose records begin at `starts` (B, T), and what each one sees.

    The latter is True at (B, 1, T, T) for a token and those before it in its record.
    """
    places = torch.arange(starts.shape[1], device=starts.device)
    seen = (places >= starts[..., None]) & (places <= places[:, None])
    return places - starts, seen[:, None]


class FeedForward(nn.Module):
    """Two linear layers around the activation."""

    def __init__(self, model: ModelSpec, cut: Cut) -> None:
        super().__init__()
        self.c_fc = Column(model.hidden_size, model.ffn_size, cut)
        self.activation = ACTIVATIONS[model.activation]
        self.c_proj = Row(model.ffn_size, model.hidden_size, cut)

    def forward(self, x: Tensor) -> Tensor:
        """Widen, activate, narrow; x and the result are (B, T, H)."""
        return self.c_proj(self.activation(self.c_fc(x)))  # type: ignore[no-any-return]
