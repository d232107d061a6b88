"""GPT in torch: pre-LayerNorm, learned positions. Shapes: B samples, T tokens, H wide, V vocabulary."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from torch import Tensor, nn

from gptbridge.rules.dropout import Drawing, drops_out
from gptbridge.weights.architecture import head, outputs, sizes
from gptbridge.weights.layouts.gpt2 import gpt2_in_memory
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import TaskSpec
from gptbridge_torch.adapters import adapt
from gptbridge_torch.cache import Cache
from gptbridge_torch.collectives import Cut, enter
from gptbridge_torch.loss import Words
from gptbridge_torch.parts import Attention, Dropout, FeedForward, Recompute, apart, embed, norm, table

LAYOUT = gpt2_in_memory("torch", out_in=True)  # as nn.Linear has them


class Block(nn.Module):
    """One transformer layer."""

    def __init__(self, model: ModelSpec, layer: int, recompute: Recompute, cut: Cut) -> None:
        super().__init__()
        self.recompute = recompute
        self.ln_1 = norm(model)
        self.attn = Attention(model, layer, recompute, cut)
        self.ln_2 = norm(model)
        self.mlp = FeedForward(model, cut)
        self.attn_dropout = Dropout(model.hidden_dropout_prob, layer, "attn", cut)
        self.mlp_dropout = Dropout(model.hidden_dropout_prob, layer, "mlp", cut)

    def forward(
        self, x: Tensor, cache: Cache | None = None, seed: int | None = None, seen: Tensor | None = None
    ) -> Tensor:
        """Add attention, then feed-forward, to the residual stream; x and the result are (B, T, H)."""
        attended = self.recompute("full_attn", self.attn, self.ln_1(x), cache, seed, seen)
        x = x + self.attn_dropout(attended, seed)
        return x + self.mlp_dropout(self.mlp(self.ln_2(x)), seed)  # type: ignore[no-any-return]


class GPT(nn.Module):
    """The layers `layers` of the model, with the embeddings before them if they are the first, and the
    last norm and the head if they are the last.

    The product with `head`, which makes logits of the result, is the loss's affair. Products are computed in
    `dtype`; `stream_dtype` is the type of the residual stream between the blocks.
    """

    def __init__(
        self,
        model: ModelSpec,
        layers: range,
        *,
        first: bool,
        last: bool,
        recompute: str,
        dtype: torch.dtype,
        stream_dtype: torch.dtype,
        cut: Cut,
        task: TaskSpec | None = None,
    ) -> None:
        super().__init__()
        self.width = model.hidden_size
        self.dtype, self.stream_dtype = dtype, stream_dtype
        self.recompute = Recompute(recompute, drops_out(model, task))
        self.first, self.last = first, last
        heads = head(model, task)
        self.tied = not heads
        self.cut = cut
        self.words = Words.of(model.vocab_size, cut)
        self.outputs = Words.of(outputs(model, task), cut)
        if first or (last and self.tied):
            self.wte = table(model.vocab_size, model.hidden_size)
        if first:
            self.wpe = table(model.max_position_embeddings, model.hidden_size)
            self.dropout = Dropout(model.hidden_dropout_prob, None, "embedding", cut)
        self.h = nn.ModuleDict({str(n): Block(model, n, self.recompute, cut) for n in layers})
        if last:
            self.ln_f = norm(model)
            for weight in heads:
                rows, width = weight.axes.shape(sizes(model, task))
                setattr(self, weight.name.removesuffix(".weight"), nn.Linear(width, rows, bias=False))
        self.projection = heads[0].name if heads else "wte.weight"
        self.drawing = Drawing()
        if task is not None and task.lora is not None:
            adapt(self.h, task.lora, self.drawing)

    @property
    def head(self) -> nn.Parameter:
        """The output projection, this rank's rows of (V, H); a classifier's has a row for each class."""
        return self.get_parameter(self.projection)

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        seed: Tensor | int | None = None,
        starts: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states (B, T, H) after these layers, those after the last one in `dtype`.

        `x` are token ids (B, T), or the hidden states that the stage before returned. `positions` (B, T)
        are the tokens' places, by default 0 to T - 1, or those in records that begin at `starts` (B, T), none
        of which sees another. Dropout is drawn from `seed`.
        """
        drawn = None if seed is None else int(seed)
        self.drawing.seed = drawn
        seen = None
        if starts is not None:
            positions, seen = apart(starts)
        lower = self.dtype != torch.float32
        with torch.autocast(x.device.type, self.dtype) if lower else nullcontext():
            if self.first:
                span = slice(*self.span(x.shape[1]))
                places = self.wpe.weight[span] if positions is None else self.wpe(positions[..., span])
                x = embed(x, self.wte.weight, self.words, self.cut)
                x = self.dropout((x + places).to(self.stream_dtype), drawn)
            for block in self.h.values():
                x = self.recompute("full", block, x, cache, drawn, seen)
            return enter(self.ln_f(x).to(self.dtype), self.cut) if self.last else x

    def span(self, length: int) -> tuple[int, int]:
        """Return which of `length` positions this rank's residual stream has."""
        return (0, length) if self.cut.length is None else self.cut.part(length)
