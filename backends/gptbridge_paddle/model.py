"""GPT in Paddle: pre-LayerNorm, learned positions. Shapes: B samples, T tokens, H wide, V vocabulary."""

from __future__ import annotations

from paddle import Tensor, nn

from gptbridge.rules.dropout import Drawing
from gptbridge.weights.architecture import head, outputs
from gptbridge.weights.layouts.gpt2 import gpt2_in_memory
from gptbridge_paddle.adapters import adapt
from gptbridge_paddle.cache import Cache
from gptbridge_paddle.collectives import Cut, enter
from gptbridge_paddle.loss import Words
from gptbridge_paddle.parts import Attention, Dropout, FeedForward, Recompute, apart, embed, embedding, norm
from gptbridge_paddle.sharding import Sharding, sharded
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import TaskSpec

LAYOUT = gpt2_in_memory("paddle", out_in=False)  # as nn.Linear has them


class Block(nn.Layer):
    """One transformer layer."""

    def __init__(self, model: ModelSpec, layer: int, recompute: Recompute, cut: Cut) -> None:
        super().__init__()
        self.recompute = recompute
        self.ln_1 = norm(model)
        self.attn = Attention(model, layer, recompute, cut)
        self.attn_dropout = Dropout(model.hidden_dropout_prob, layer, "attn", cut)
        self.ln_2 = norm(model)
        self.mlp = FeedForward(model, cut)
        self.mlp_dropout = Dropout(model.hidden_dropout_prob, layer, "mlp", cut)

    def forward(
        self, x: Tensor, cache: Cache | None = None, seed: int = 0, hidden: Tensor | None = None
    ) -> Tensor:
        """Add attention, then feed-forward, to the residual stream; x and the result are (B, T, H)."""
        attended = self.recompute("full_attn", self.attn, self.ln_1(x), cache, seed, hidden)
        x = x + self.attn_dropout(attended, seed)
        return x + self.mlp_dropout(self.mlp(self.ln_2(x)), seed)


class GPT(nn.Layer):
    """The layers `layers` of the model, with the embeddings before them if they are the first, and the
    last norm and the head if they are the last.

    The product with `head`, which makes logits of the result, is the loss's affair. The residual stream
    between the blocks is fp32.
    """

    def __init__(
        self,
        model: ModelSpec,
        layers: range,
        *,
        first: bool,
        last: bool,
        recompute: str,
        cut: Cut,
        sharding: Sharding,
        task: TaskSpec | None = None,
    ) -> None:
        super().__init__()
        self.recompute = Recompute(recompute)
        self.first, self.last, self.cut = first, last, cut
        self.words = Words.of(model.vocab_size, cut)
        self.outputs = Words.of(outputs(model, task), cut)
        heads = head(model, task)
        self.tied = not heads

        def table(rows: int) -> nn.Layer:
            return sharded(embedding(rows, model.hidden_size), sharding)

        rows = self.words.stop - self.words.start
        if first or (last and self.tied):
            self.wte = table(rows)
        if first:
            self.wpe = table(model.max_position_embeddings)
            self.dropout = Dropout(model.hidden_dropout_prob, None, "embedding", cut)
        forgotten = {"full_attn": "attn", "full": ""}.get(recompute)
        blocks = {n: sharded(Block(model, n, self.recompute, cut), sharding, forgotten) for n in layers}
        self.h = nn.LayerDict({str(n): block for n, block in blocks.items()})
        if last:
            self.ln_f = sharded(norm(model), sharding)
            for weight in heads:
                setattr(self, weight.name.partition(".")[0], table(self.outputs.stop - self.outputs.start))
        self.projection = heads[0].name.removesuffix(".weight") if heads else "wte"
        self.drawing = Drawing()
        if task is not None and task.lora is not None:
            adapt(self.h, task.lora, self.drawing)

    @property
    def head(self) -> Tensor:
        """The output projection, this rank's rows of (V, H); a classifier's has a row for each class."""
        return getattr(self, self.projection).weight

    def forward(
        self,
        x: Tensor,
        positions: Tensor | None = None,
        cache: Cache | None = None,
        seed: int = 0,
        starts: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states (B, T, H) after these layers, the last ones ready for the head.

        `x` are token ids (B, T), or the hidden states that the stage before returned. `positions` (B, T)
        are the tokens' places, by default 0 to T - 1, or those in records that begin at `starts` (B, T), none
        of which sees another. `seed` is that of the micro-batch's dropout.
        """
        self.drawing.seed = seed
        hidden = None
        if starts is not None:
            positions, hidden = apart(starts)
        if self.first:
            span = self._span(x.shape[1])
            places = self.wpe.weight[span] if positions is None else self.wpe(positions[:, span])
            x = embed(x, self.wte, self.words, self.cut)
            x = self.dropout((x + places).astype("float32"), seed)
        for block in self.h.values():
            x = self.recompute("full", block, x, cache, seed, hidden)
        return enter(self.ln_f(x), self.cut) if self.last else x

    def _span(self, length: int) -> slice:
        """Return the positions of the tokens that this rank has of `length`."""
        return slice(length) if self.cut.length is None else slice(*self.cut.part(length))
