"""Keys and values of the tokens that a decoder has been fed, and the graph that uses them.

Shapes: R rows, T new tokens, N heads of D, C places of a row: its capacity, and one more that takes what
fills up the shorter rows of a call. Every new shape is compiled, so R and T are padded to usual sizes and
each call attends to all C places. `ScatterUpdate` writes into the tensor that it is given.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from numpy.typing import NDArray

from gptbridge.rules.rows import Rows
from gptbridge_mindspore.loss import LinearCrossEntropy
from gptbridge_mindspore.model import GPT, Block
from gptbridge_mindspore.parts import HIDDEN, Core, by_heads
from gptbridge_mindspore.shapes import pad, usual_size
from gptbridge_specs import ModelSpec


class Cache:
    """Keys and values of rows, each up to `capacity` tokens: (R N C, D) numbers a layer of this rank."""

    def __init__(self, model: ModelSpec, rows: int, capacity: int, heads: int, layers: int) -> None:
        self.rows = Rows(rows, capacity)
        self._most = model.max_position_embeddings
        self._heads = heads
        self._places = usual_size(capacity, self._most, smallest=64) + 1
        self._whole = usual_size(rows, rows, smallest=1)
        shape = (self._whole * self._heads * self._places, model.head_size)
        self.held = [Tensor(np.zeros(shape, np.float32)) for _ in range(2 * layers)]

    def place(self, lengths: NDArray[np.int32], width: int) -> None:
        """Prepare for T = `width` new tokens in the rows of which `lengths` is not 0."""
        placed = self.rows.place(lengths, width, span=self._places)
        self._grown = len(placed.rows)
        # One token each: to compute all rows where they lie costs less than copies of those that grow.
        whole = width == 1 or self._grown == len(lengths) == self._whole
        rows = 1 if self._grown == 1 and not whole else self._whole
        self.shape = rows, 1 if width == 1 else usual_size(width, self._most)
        self._growing = None if whole else pad(placed.rows.astype(np.int32), (rows,))
        self.at = placed.rows if whole else np.arange(self._grown)
        slots = np.full(self.shape, self._places - 1, np.int32)
        slots[self.at, :width] = np.where(placed.slots < self.rows.capacity, placed.slots, slots[0, 0])
        bias = np.zeros((*self.shape, self._places), np.float32)
        bias[self.at, :width] = np.where(placed.visible, np.float32(0), np.float32(HIDDEN))
        first = np.arange(rows * self._heads, dtype=np.int32).reshape(rows, self._heads, 1) * self._places
        self.positions = self.spread(placed.positions)
        self.bias = Tensor(bias)
        self.slots = Tensor((first + slots[:, None]).ravel())  # (R N T,), among those of all rows
        last = self.shape[1] * np.arange(rows, dtype=np.int32)
        last[self.at] += placed.last.astype(np.int32)
        self.last = Tensor(last)

    def spread(self, numbers: NDArray[np.integer[Any]]) -> Tensor:
        """Return (R, T) numbers of the rows that grow where these are computed, zeros elsewhere."""
        spread = np.zeros(self.shape, np.int32)
        spread[self.at, : numbers.shape[1]] = numbers
        return Tensor(spread)

    def growing(self) -> list[Tensor]:
        """Return keys, then values, of each layer, of what is computed: all, or copies of rows that grow."""
        return self.held if self._growing is None else self._chosen(self._growing)

    def update(self, held: list[Tensor]) -> None:
        """Take back what `growing` returned, with the new tokens in it."""
        if self._growing is None:
            return
        rows = Tensor(self._growing[: self._grown, None])
        self.held = [
            ops.tensor_scatter_update(self._by_row(whole), rows, self._by_row(part)[: self._grown]).reshape(
                whole.shape
            )
            for whole, part in zip(self.held, held, strict=True)
        ]

    def keep(self, rows: NDArray[np.int32]) -> None:
        """Make row n what row `rows[n]` was; -1 begins an empty row."""
        self.rows.keep(rows)
        unmoved = np.arange(self._whole, dtype=np.int32)[: len(rows)]
        if len(rows) > self._whole or (rows[rows >= 0] != unmoved[rows >= 0]).any():
            self._whole = max(self._whole, usual_size(len(rows), smallest=1))
            self.held = self._chosen(pad(np.maximum(rows, 0), (self._whole,)))

    def _chosen(self, rows: NDArray[np.int32]) -> list[Tensor]:
        """Return copies of these rows."""
        width = self.held[0].shape[-1]
        return [ops.gather(self._by_row(held), Tensor(rows), 0).reshape(-1, width) for held in self.held]

    def _by_row(self, held: Tensor) -> Tensor:
        return held.reshape(-1, self._heads * self._places * held.shape[-1])


class CachedBlock(nn.Cell):
    """A layer that attends to the keys and values of earlier tokens too."""

    def __init__(self, model: ModelSpec, block: Block, dtype: Any) -> None:
        super().__init__()
        self.block, self.heads = block, block.attn.heads
        self.core = Core(model, dtype, self.heads)
        self.write = ops.ScatterUpdate()

    def construct(self, x: Tensor, bias: Tensor, slots: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Return the stream (R, T, H) after the layer; keys and values get those of x."""
        r, c = bias.shape[0], bias.shape[2]
        q, k, v = self.block.attn.by_head(self.block.ln_1(x))
        d = q.shape[-1]
        places = (r * self.heads, c, d)
        keys = self.write(keys, slots, k.reshape(-1, d)).reshape(places)
        values = self.write(values, slots, v.reshape(-1, d)).reshape(places)
        y = self.core(q, keys, values, by_heads(bias, r, self.heads))
        x = x + self.block.attn.joined(y, r)
        return x + self.block.mlp(self.block.ln_2(x))


class CachedLayers(nn.Cell):
    """The embeddings and all layers.

    What makes logits is a graph of its own: in one with what writes, MindSpore copies a weight that is used
    before a write and after it, as a tied table is.
    """

    def __init__(self, model: ModelSpec, gpt: GPT, dtype: Any) -> None:
        super().__init__()
        self.gpt = gpt
        self.blocks = nn.CellList([CachedBlock(model, block, dtype) for block in gpt.h])

    def construct(
        self, tokens: Tensor, positions: Tensor, bias: Tensor, slots: Tensor, *held: Tensor
    ) -> Tensor:
        """Return the stream (R, T, H) after ids (R, T); `held` gets the keys and values of each layer."""
        x = self.gpt.embed(tokens, positions)
        for n in range(len(self.blocks)):
            x = self.blocks[n](x, bias, slots, held[2 * n], held[2 * n + 1])
        return x


class LastLogits(nn.Cell):
    """The logits after the last token of each row."""

    def __init__(self, gpt: GPT, loss: LinearCrossEntropy) -> None:
        super().__init__()
        self.gpt, self.loss = gpt, loss

    def construct(self, x: Tensor, last: Tensor) -> Tensor:
        """Return the (R, V) logits after the rows `last` of the stream (R, T, H)."""
        hidden = self.gpt.final(x)
        rows = ops.gather(hidden.reshape(-1, hidden.shape[-1]), last, 0)
        return self.loss.logits(rows, self.gpt.head)
