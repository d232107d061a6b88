"""Keys and values of the tokens that a decoder has been fed, and the graph that uses them.

Shapes: R rows, T new tokens, N heads of D, C places of a row: its capacity, and one more that takes what
fills up the shorter rows of a call. Every new shape is compiled, so R and T are padded to usual sizes and
each call attends to all C places.
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
    """Keys and values of rows, each up to `capacity` tokens: (N C D) numbers a row and layer of this rank."""

    def __init__(self, model: ModelSpec, rows: int, capacity: int, heads: int, layers: int) -> None:
        self.rows = Rows(rows, capacity)
        self._most = model.max_position_embeddings
        self._heads = heads
        self._places = usual_size(capacity, self._most, smallest=64) + 1
        shape = (usual_size(rows, rows, smallest=1), self._heads * self._places * model.head_size)
        self.held = [Tensor(np.zeros(shape, np.float32)) for _ in range(2 * layers)]

    def place(self, lengths: NDArray[np.int32], width: int) -> None:
        """Prepare for T = `width` new tokens in the rows of which `lengths` is not 0."""
        placed = self.rows.place(lengths, width, span=self._places)
        whole = len(self.held[0])
        full = len(placed.rows) == len(lengths)
        rows = 1 if len(placed.rows) == 1 else whole
        self.shape = rows, 1 if full and width == 1 else usual_size(width, self._most)
        alone = full and rows == whole
        self._growing = None if alone else pad(placed.rows.astype(np.int32), (rows,))
        self._grown = len(placed.rows)
        slots = np.full(self.shape, self._places - 1, np.int32)
        slots[: self._grown, :width] = np.where(placed.slots < self.rows.capacity, placed.slots, slots[0, 0])
        bias = np.zeros((*self.shape, self._places), np.float32)
        bias[: self._grown, :width] = np.where(placed.visible, np.float32(0), np.float32(HIDDEN))
        first = np.arange(rows * self._heads, dtype=np.int32).reshape(rows, self._heads, 1) * self._places
        self.positions = Tensor(pad(placed.positions.astype(np.int32), self.shape))
        self.bias = Tensor(bias)
        self.slots = Tensor((first + slots[:, None]).reshape(-1, 1))  # (R N T, 1), among those of all rows
        last = pad(placed.last.astype(np.int32), (rows,))
        self.last = Tensor(last + self.shape[1] * np.arange(rows, dtype=np.int32))

    def growing(self) -> list[Tensor]:
        """Return keys, then values, of each layer, of the rows that grow."""
        if self._growing is None:
            return self.held
        rows = Tensor(self._growing)
        return [ops.gather(held, rows, 0) for held in self.held]

    def update(self, held: list[Tensor]) -> None:
        """Take back what `growing` returned, with the new tokens."""
        if self._growing is None:
            self.held = held
            return
        rows = Tensor(self._growing[: self._grown, None])
        self.held = [
            ops.tensor_scatter_update(whole, rows, part[: self._grown])
            for whole, part in zip(self.held, held, strict=True)
        ]

    def keep(self, rows: NDArray[np.int32]) -> None:
        """Make row n what row `rows[n]` was; -1 begins an empty row."""
        self.rows.keep(rows)
        whole = len(self.held[0])
        unmoved = np.arange(whole, dtype=np.int32)[: len(rows)]
        if len(rows) > whole or (rows[rows >= 0] != unmoved[rows >= 0]).any():
            chosen = Tensor(pad(np.maximum(rows, 0), (max(whole, usual_size(len(rows), smallest=1)),)))
            self.held = [ops.gather(held, chosen, 0) for held in self.held]


class CachedBlock(nn.Cell):
    """A layer that attends to the keys and values of earlier tokens too."""

    def __init__(self, model: ModelSpec, block: Block, dtype: Any) -> None:
        super().__init__()
        self.block, self.heads = block, block.attn.heads
        self.core = Core(model, dtype, self.heads)
        self.write = ops.TensorScatterUpdate()

    def construct(
        self, x: Tensor, bias: Tensor, slots: Tensor, keys: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the stream (R, T, H) after the layer, and the keys and values with those of x."""
        r, c = bias.shape[0], bias.shape[2]
        q, k, v = self.block.attn.by_head(self.block.ln_1(x))
        d = q.shape[-1]
        keys = self.write(keys.reshape(-1, d), slots, k.reshape(-1, d))
        values = self.write(values.reshape(-1, d), slots, v.reshape(-1, d))
        places = (r * self.heads, c, d)
        y = self.core(q, keys.reshape(places), values.reshape(places), by_heads(bias, r, self.heads))
        x = x + self.block.attn.joined(y, r)
        return x + self.block.mlp(self.block.ln_2(x)), keys.reshape(r, -1), values.reshape(r, -1)


class CachedStep(nn.Cell):
    """The logits after new tokens, and the keys and values with them."""

    def __init__(self, model: ModelSpec, gpt: GPT, loss: LinearCrossEntropy, dtype: Any) -> None:
        super().__init__()
        self.gpt, self.loss = gpt, loss
        self.blocks = nn.CellList([CachedBlock(model, block, dtype) for block in gpt.h])

    def construct(
        self, tokens: Tensor, positions: Tensor, bias: Tensor, slots: Tensor, last: Tensor, *held: Tensor
    ) -> tuple[Tensor, ...]:
        """Return (R, V) logits after the rows `last` of ids (R T), and the keys and values of each layer."""
        x = self.gpt.embed(tokens, positions)
        after = ()
        for n in range(len(self.blocks)):
            x, keys, values = self.blocks[n](x, bias, slots, held[2 * n], held[2 * n + 1])
            after = (*after, keys, values)  # type: ignore[assignment]
        return (self.after_last(x, last), *after)

    def after_last(self, x: Tensor, last: Tensor) -> Tensor:
        """Return the (R, V) logits after the rows `last` of the stream (R, T, H)."""
        hidden = self.gpt.final(x)
        rows = ops.gather(hidden.reshape(-1, hidden.shape[-1]), last, 0)
        return self.loss.logits(rows, self.gpt.head)
