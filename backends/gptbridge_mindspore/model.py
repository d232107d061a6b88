"""GPT in MindSpore: pre-LayerNorm, learned positions. Shapes: B samples, T tokens, H wide, V vocabulary.

Masks are tuples, empty where nothing is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mindspore import Parameter, Tensor, nn

from gptbridge.weights.architecture import head, sizes
from gptbridge.weights.layouts.gpt2 import gpt2_in_memory
from gptbridge_mindspore.adapters import adapt
from gptbridge_mindspore.collectives import enter
from gptbridge_mindspore.dropout import BlockMasks
from gptbridge_mindspore.parallel import Cut
from gptbridge_mindspore.parts import Attention, Embedding, FeedForward, Kernels, LayerNorm, Words, parameter
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import TaskSpec

LAYOUT = gpt2_in_memory("mindspore", out_in=False)

NO_MASKS: BlockMasks = ((), (), (), (), ())


class Block(nn.Cell):
    """One transformer layer: two branches, each added to the residual stream."""

    def __init__(self, model: ModelSpec, recompute: str, dtype: Any, kernels: Kernels, cut: Cut) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(model.hidden_size, model.layernorm_epsilon)
        self.attn = Attention(model, recompute, dtype, kernels, cut)
        self.ln_2 = LayerNorm(model.hidden_size, model.layernorm_epsilon)
        self.mlp = FeedForward(model, dtype, cut)
        self.dropout = kernels.drop(model.hidden_dropout_prob)

    def construct(self, x: Tensor, bias: Tensor, masks: BlockMasks) -> Tensor:
        """Add attention, then feed-forward; x and the result are (B, T, H)."""
        return self.feed_forward(self.attention(x, bias, masks), bias, masks)

    def attention(self, x: Tensor, bias: Tensor, masks: BlockMasks) -> Tensor:
        """Add attention."""
        return x + self.dropout(self.attn(self.ln_1(x), bias, masks[0], masks[3]), *masks[1])

    def feed_forward(self, x: Tensor, bias: Tensor, masks: BlockMasks) -> Tensor:
        """Add feed-forward."""
        return x + self.dropout(self.mlp(self.ln_2(x), *masks[4]), *masks[2])


class GPT(nn.Cell):
    """The layers `layers` of the model: with `first` the embeddings, with `last` all but the last product.

    A part that is not the first takes the stream (B, T, H) instead of tokens.
    """

    def __init__(
        self,
        model: ModelSpec,
        layers: range,
        *,
        first: bool,
        last: bool,
        recompute: str,
        dtype: Any,
        kernels: Kernels,
        cut: Cut,
        task: TaskSpec | None = None,
    ) -> None:
        super().__init__()
        self.layers = layers
        self.first, self.last = first, last
        heads = head(model, task)
        self.tied = not heads
        if first or (last and self.tied):
            self.wte = Words(cut, model.hidden_size)
        if first:
            self.wpe = Embedding(model.max_position_embeddings, model.hidden_size)
        self.dropout = kernels.drop(model.hidden_dropout_prob)
        self.h = nn.CellList([Block(model, recompute, dtype, kernels, cut) for _ in layers])
        if last:
            self.ln_f = LayerNorm(model.hidden_size, model.layernorm_epsilon)
            self.enter = enter(cut)
            here = sizes(model, task) | {"v": len(cut.words)}
            for weight in heads:
                setattr(self, weight.name.removesuffix(".weight"), Head(*weight.axes.shape(here)))
        self.projection = heads[0].name.removesuffix(".weight") if heads else "wte"  # what makes logits
        if task is not None and task.lora is not None:
            adapt(self.h, task.lora, dtype, kernels.drop)

    def weights(self) -> dict[str, Parameter]:
        """Return the weights of this part by the names of LAYOUT."""
        cells = {name: getattr(self, name) for name in ("wte", "wpe") if hasattr(self, name)}
        cells |= {f"h.{n}": block for n, block in zip(self.layers, self.h, strict=True)}
        cells |= {name: getattr(self, name) for name in ("ln_f", "lm_head", "score") if hasattr(self, name)}
        return {
            f"{cell}.{name}": weight
            for cell, part in cells.items()
            for name, weight in part.parameters_and_names()
        }

    @property
    def head(self) -> Parameter:
        """The output projection, (V, H); a classifier's has a row for each class."""
        return getattr(self, self.projection).weight

    def construct(self, tokens: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
        """Return the final hidden states (B, T, H) of ids (B, T) at positions (B, T), without dropout."""
        x = self.embed(tokens, positions) if self.first else tokens
        for block in self.h:
            x = block(x, bias, NO_MASKS)
        return self.final(x) if self.last else x

    def final(self, x: Tensor) -> Tensor:
        """Return what the output projection takes of the stream (B, T, H)."""
        return self.enter(self.ln_f(x))

    def adopt(self, weights: Mapping[str, Parameter]) -> None:
        """Compute with these weights, by the names of LAYOUT, instead of its own."""
        for name, weight in weights.items():
            *path, leaf = name.split(".")
            cell: Any = self
            for step in path:
                cell = cell[int(step) - self.layers.start] if step.isdigit() else getattr(cell, step)
            setattr(cell, leaf, weight)

    def embed(self, tokens: Tensor, positions: Tensor, *mask: Tensor) -> Tensor:
        """Return the (B, T, H) sum of both embeddings, with dropout."""
        return self.dropout(self.wte(tokens) + self.wpe(positions), *mask)


class Head(nn.Cell):
    """An output projection of its own."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = parameter(rows, width)
