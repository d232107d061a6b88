"""A rank's stage of a model, layer by layer: the Cells of one layer take the weights of each in turn.

So a pipeline can let micro-batches overtake each other, and where weights are sharded, those of one layer
alone are whole at a time. A layer's backward pass computes the layer again from its input.
"""

from __future__ import annotations

from collections.abc import Iterable

import mindspore as ms
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from gptbridge_mindspore.collectives import Group
from gptbridge_mindspore.dropout import masks_of_block, of_sites
from gptbridge_mindspore.gradients import Ends
from gptbridge_mindspore.model import GPT, Block
from gptbridge_mindspore.sharding import Fill, height
from gptbridge_specs import ModelSpec

FIRST = ("wte.weight", "wpe.weight")
LAST = ("ln_f.weight", "ln_f.bias")  # beside the output projection
LAYER = "h.0."


class Embedding(nn.Cell):
    """The sum of both embeddings, with dropout, and its gradient."""

    def __init__(self, ends: Ends, dropout: nn.Cell) -> None:
        super().__init__()
        self.ends, self.dropout = ends, dropout

    def construct(self, tokens: Tensor, positions: Tensor, *drawn: Tensor) -> Tensor:
        """Return the stream (B, T, H) of ids (B, T)."""
        mask = self.dropout(tokens.shape[0], tokens.shape[1], *drawn)
        return self.ends.net.embed(tokens, positions, *mask)

    def gradients(self, tokens: Tensor, positions: Tensor, dy: Tensor, *drawn: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of the two weights."""
        mask = self.dropout(tokens.shape[0], tokens.shape[1], *drawn)
        return self.ends.of_embeddings(tokens, positions, dy, *mask)


class Layer(nn.Cell):
    """One layer and its gradients."""

    def __init__(self, block: Block, dropout: nn.Cell, model: ModelSpec) -> None:
        super().__init__()
        self.block, self.dropout = block, dropout
        self.counts = masks_of_block(model)
        self.gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
        self.weights = ParameterTuple(list(block.get_parameters()))

    def construct(self, x: Tensor, bias: Tensor, *drawn: Tensor) -> Tensor:
        """Return the stream (B, T, H) after the layer."""
        masks = self.dropout(x.shape[0], bias.shape[-1], *drawn)
        return self.block(x, bias, of_sites(masks, self.counts))

    def gradients(self, x: Tensor, dy: Tensor, bias: Tensor, *drawn: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of x, then of the weights."""
        masks = of_sites(self.dropout(x.shape[0], bias.shape[-1], *drawn), self.counts)
        of_x, of_weights = self.gradient(self.block, self.weights)(x, bias, masks, dy)
        return (of_x[0], *of_weights)


class Pieces:
    """The weights of a stage, by the names of the backend's layout, and the graphs that use them.

    `net` has one layer and the ends of the stage; `layers` are the numbers of the stage's layers. With a
    `sharded` group this rank has slices of all weights.
    """

    def __init__(self, net: GPT, layers: Iterable[int], sharded: Group | None) -> None:
        self.net, cells = net, net.weights()
        self._sharded = sharded
        self._own = {name: weight for name, weight in cells.items() if name.startswith(LAYER)}
        self._fill = ms.jit(Fill(sharded, list(self._own.values())))
        first = {name: cells[name] for name in FIRST if net.first}
        last = {name: cells[name] for name in (f"{net.projection}.weight", *LAST) if net.last}
        self._ends = {
            part: (list(found), ms.jit(Fill(sharded, list(found.values()))))
            for part, found in (("first", first), ("last", last))
        }
        blocks = {self.named(name, layer): cell for layer in layers for name, cell in self._own.items()}
        apart = blocks if sharded is None else {**first, **blocks, **last}
        self.weights = {**first, **last, **{name: self._kept(name, cell) for name, cell in apart.items()}}

    @staticmethod
    def named(name: str, layer: int) -> str:
        """Return what a weight of the one layer is called in another."""
        return f"h.{layer}.{name.removeprefix(LAYER)}" if name.startswith(LAYER) else name

    def _kept(self, name: str, cell: Parameter) -> Parameter:
        rows = cell.shape[0] if self._sharded is None else height(cell.shape[0], self._sharded)
        return Parameter(ops.zeros((rows, *cell.shape[1:]), cell.dtype), name=name)

    def take_layer(self, layer: int) -> list[str]:
        """Put the weights of a layer into the Cells; return their names."""
        names = [self.named(name, layer) for name in self._own]
        self._fill(*(self.weights[name] for name in names))
        return names

    def take(self, part: str) -> list[str]:
        """Put the weights of the "first" or "last" Cells outside the layers into them; return their names."""
        names, fill = self._ends[part]
        if self._sharded is not None:
            fill(*(self.weights[name] for name in names))
        return names
