"""The model and trainer of a rank that computes layer by layer: its stage of a pipeline, or from slices."""

from __future__ import annotations

from collections.abc import Callable

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, ops

from gptbridge.rules.pipelining import Pass, Turn, ordered
from gptbridge.rules.stepping import Labels
from gptbridge.session import Batch
from gptbridge_mindspore.cache import Cache, CachedBlock, LastLogits
from gptbridge_mindspore.collectives import all_reduce_each
from gptbridge_mindspore.dropout import embedding_sites, layer_sites
from gptbridge_mindspore.gradients import Ends
from gptbridge_mindspore.model import GPT
from gptbridge_mindspore.parallel import Cut
from gptbridge_mindspore.pieces import Embedding, Layer, Pieces
from gptbridge_mindspore.pipeline import Neighbours
from gptbridge_mindspore.session import MindSporeModel, MindSporeTrainer

OneLayer = Callable[[int, Tensor], Tensor]  # of its number among this rank's, and the stream


class StagedModel(MindSporeModel):
    """A `gptbridge.session.LanguageModel` of which this rank has some layers, or slices."""

    def _open(self) -> dict[str, Parameter]:
        spec, place = self._spec, self._place
        self._runs = place.layers(spec.model.num_layers)
        self._stage, self._stages = place.index("pipeline"), spec.parallel.pipeline
        self._count = self._stages * spec.parallel.virtual_pipeline
        self._neighbours = Neighbours(spec.parallel, self._stage, self._groups)
        self._layers = [layer for run in self._runs for layer in run]
        self._model = self._built(self._cut, range(1))
        self._pieces = Pieces(
            self._model, self._layers, self._groups.sharding if self._sliced("weight") else None
        )
        self._embedding, self._layer = self._cells(self._cut, self._model)
        self._embed, self._forward = ms.jit(self._embedding), ms.jit(self._layer)
        self._cached = ms.jit(CachedBlock(spec.model, self._model.h[0], self._dtype))
        self._final = ms.jit(self._model.final)
        self._after_last = ms.jit(LastLogits(self._model, self._head))
        return self._pieces.weights

    def _cells(self, cut: Cut, net: GPT) -> tuple[Embedding, Layer]:
        """Return what a stage begins with, and a layer."""
        model, dropout = self._spec.model, self._kernels.dropout
        ends = Ends(net, self._new_head())
        layer = Layer(net.h[0], dropout(model, cut, layer_sites(model, 0)), model)
        return Embedding(ends, dropout(model, cut, embedding_sites(model))), layer

    def _through(self, tokens: Tensor, positions: Tensor, layer: OneLayer) -> Tensor:
        """Return the stream (B, T, H) after all layers; on other stages, what they passed on."""
        shape = (*tokens.shape, self._spec.model.hidden_size)
        x = tokens
        for number in range(self._count):
            run, stage = divmod(number, self._stages)
            now = Pass(stage, number, Turn(run, 0))
            if stage == self._stage:
                if number == 0:
                    self._pieces.take("first")
                    x = self._embed(tokens, positions)
                else:
                    x = self._neighbours.taken(now)
                for n in self._runs[run]:
                    self._pieces.take_layer(n)
                    x = layer(self._layers.index(n), x)
            self._neighbours.exchange([now], {number: x}, shape)
        if self._model.last:
            self._pieces.take("last")
        return x

    def _hidden(self, tokens: Tensor, positions: Tensor, bias: Tensor) -> Tensor:
        x = self._through(tokens, positions, lambda _, x: self._forward(x, bias))
        return self._final(x) if self._model.last else x

    def _at_the_end(self, head: Callable[..., Tensor], rows: Tensor, *others: Tensor) -> Tensor:
        shape = (rows.shape[0],) if others else (rows.shape[0], self._spec.model.vocab_size)
        found = super()._at_the_end(head, rows, *others) if self._model.last else ops.zeros(shape)
        return all_reduce_each([found], self._groups.pipeline)[0]

    def _stepped(self, ids: Tensor, cache: Cache, held: list[Tensor]) -> Tensor:
        def layer(n: int, x: Tensor) -> Tensor:
            return self._cached(x, cache.bias, cache.slots, held[2 * n], held[2 * n + 1])

        x = self._through(ids, cache.positions, layer)
        shape = (ids.shape[0], self._spec.model.vocab_size)
        logits = self._after_last(x, cache.last) if self._model.last else ops.zeros(shape)
        return all_reduce_each([logits], self._groups.pipeline)[0]


class StagedTrainer(StagedModel, MindSporeTrainer):
    """A `gptbridge.session.Trainer` of the same."""

    def _prepare(self) -> None:
        embedding, layer, net = self._embedding, self._layer, self._model
        if self._between.sequence:
            net = self._built(self._between, range(1))
            net.adopt(self._model.weights())
            embedding, layer = self._cells(self._between, net)
        self._drawn = embedding.dropout.arguments, layer.dropout.arguments
        self._begin, self._one = ms.jit(embedding), ms.jit(layer)
        self._of_begin, self._of_one = ms.jit(embedding.gradients), ms.jit(layer.gradients)
        self._of_loss = ms.jit(embedding.ends.of_loss)

    def run(self, batch: Batch, labels: Labels, factor: float) -> Tensor:
        """Take all micro-batches forward and backward, in the order of the spec's schedule."""
        shares = batch.loss_mask * np.float32(factor)
        starts = [None] * len(shares) if batch.starts is None else batch.starts
        arrays = zip(batch.inputs, labels, shares, starts, strict=True)
        arguments = [self._arguments(*each) for each in arrays]
        tokens = self._between.tokens(batch.inputs.shape[2])
        shape = (batch.inputs.shape[1], tokens.stop - tokens.start, self._spec.model.hidden_size)
        self._inputs: dict[tuple[int, int], list[Tensor]] = {}
        self._total = Tensor(0.0, ms.float32)
        for now in ordered(self._spec.parallel, len(batch.inputs)):
            results = {}
            for each in now:
                if each.stage == self._stage:
                    n = each.turn.micro_batch
                    take = self._backward if each.turn.backward else self._ahead
                    results[each.number] = take(each, arguments[n], batch.dropout_seeds[n])
            self._neighbours.exchange(now, results, shape)
        return self._total / factor

    def _ahead(self, each: Pass, arguments: list[Tensor], seed: int) -> Tensor:
        """Return the stream after a run of layers, of which the inputs are kept."""
        tokens, positions, _, _, bias = arguments
        shape, (embedded, dropped) = self._shape(arguments), self._drawn
        if each.number == 0:
            self._pieces.take("first")
            x = self._begin(tokens, positions, *embedded(seed, shape))
        else:
            x = self._neighbours.taken(each)
        inputs = self._inputs[each.number, each.turn.micro_batch] = [x]
        for n in self._runs[each.turn.run]:
            self._pieces.take_layer(n)
            inputs.append(self._one(inputs[-1], bias, *dropped(seed, shape, n)))
        return inputs[-1]

    def _backward(self, each: Pass, arguments: list[Tensor], seed: int) -> Tensor:
        """Return the gradient of what a run of layers took; add those of its weights."""
        tokens, positions, labels, share, bias = arguments
        shape, (embedded, dropped) = self._shape(arguments), self._drawn
        *inputs, x = self._inputs.pop((each.number, each.turn.micro_batch))
        if each.number == self._count - 1:
            names = self._pieces.take("last")
            loss, dy, *found = self._of_loss(x, labels, share)
            self._total = self._total + loss
            self._add(names, found)
        else:
            dy = self._neighbours.taken(each)
        for n, x in zip(reversed(self._runs[each.turn.run]), reversed(inputs), strict=True):
            names = self._pieces.take_layer(n)
            dy, *found = self._of_one(x, dy, bias, *dropped(seed, shape, n))
            self._add(names, found)
        if each.number == 0:
            names = self._pieces.take("first")
            self._add(names, self._of_begin(tokens, positions, dy, *embedded(seed, shape)))
        return dy

    def _shape(self, arguments: list[Tensor]) -> tuple[int, ...]:
        return arguments[0].shape[0], self._spec.training.seq_length
