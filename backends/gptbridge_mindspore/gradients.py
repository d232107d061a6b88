"""The loss of a model and the gradients of its weights that are trained, in one graph.

MindSpore derives every gradient, piece by piece: a piece is a block or a branch of one. From a piece
whose input waits for the gradient that comes back (`depend`) the graph keeps its input alone, and
computes it again; the second run of any other piece is found to equal its first and costs nothing.
"""

from __future__ import annotations

from typing import Any

from mindspore import ParameterTuple, Tensor, nn, ops

from gptbridge_mindspore.dropout import BlockMasks, Masks, masks_of_block, of_sites
from gptbridge_mindspore.loss import LinearCrossEntropy
from gptbridge_mindspore.model import GPT
from gptbridge_specs import RunSpec


class Derived(nn.Cell):
    """What derives gradients of other Cells."""

    def __init__(self) -> None:
        super().__init__()
        self.gradient = ops.GradOperation(get_all=True, get_by_list=True, sens_param=True)
        self.of_inputs = ops.GradOperation(get_all=True, sens_param=True)

    def of_both(self, cell: Any, weights: ParameterTuple, *inputs: Any) -> tuple[Any, tuple[Tensor, ...]]:
        """Return the gradients of the inputs of `cell` and of its weights; the last input is its result's."""
        if len(weights) == 0:
            return self.of_inputs(cell)(*inputs), ()
        return self.gradient(cell, weights)(*inputs)  # type: ignore[no-any-return]


class Ends(Derived):
    """The loss of a model's last layers, and the gradients of its first and last weights."""

    def __init__(self, net: GPT, loss: LinearCrossEntropy) -> None:
        super().__init__()
        self.net, self.loss = net, loss
        self.embeddings = ParameterTuple([net.wte.weight, net.wpe.weight]) if net.first else None
        self.last = _parameters(net.ln_f) if net.last else None

    def of_loss(self, x: Tensor, labels: Tensor, share: Tensor) -> tuple[Tensor, ...]:
        """Return sum(share x loss) over (B, T) labels; its gradients, of the stream x, the head and ln_f."""
        final = self.net.final(x)
        hidden = final.reshape(-1, final.shape[-1])
        loss, dy, of_head = self.loss(hidden, self.net.head, labels.reshape(-1), share.reshape(-1))
        of_x, of_last = self.of_both(self.net.final, self.last, x, dy.reshape(final.shape))
        return (loss, of_x[0], of_head, *of_last)

    def of_embeddings(
        self, tokens: Tensor, positions: Tensor, dy: Tensor, *mask: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the gradients of both embeddings from that of their sum."""
        return self.gradient(self.net.embed, self.embeddings)(tokens, positions, *mask, dy)[1]  # type: ignore[no-any-return]


class LossAndGradients(Derived):
    """Called with a micro-batch; the gradients come in the order of `weights`."""

    def __init__(self, spec: RunSpec, net: GPT, loss: LinearCrossEntropy, dropout: nn.Cell) -> None:
        super().__init__()
        self.net = net
        self.dropout = dropout
        self.ends = Ends(net, loss)
        self.head_trained = net.head.requires_grad
        self.rest_trained = net.ln_f.weight.requires_grad
        self.recompute = spec.training.recompute == "full"
        self.recompute_attention = spec.training.recompute == "full_attn"
        self.on_hidden = int(spec.model.hidden_dropout_prob > 0)
        self.of_block = masks_of_block(spec.model, spec.task.lora)
        self.tied = net.tied
        self.whole = [_parameters(block) for block in net.h]
        self.first = [_parameters(block.ln_1, block.attn) for block in net.h]
        self.second = [_parameters(block.ln_2, block.mlp) for block in net.h]

    def construct(
        self, tokens: Tensor, positions: Tensor, labels: Tensor, share: Tensor, bias: Tensor, *drawn: Tensor
    ) -> tuple[Tensor, ...]:
        """Return sum(share x loss) over (B, T) labels, then the gradients; `drawn` is what dropout takes."""
        masks = self.dropout(tokens.shape[0], bias.shape[-1], *drawn)
        x = self.net.embed(tokens, positions, *masks[: self.on_hidden])
        inputs = ()
        for n in range(len(self.net.h)):
            inputs = (*inputs, x)  # type: ignore[assignment]
            x = self.net.h[n](x, bias, self.of_layer(n, masks))
        found = self.ends.of_loss(x, labels, share)
        loss, dy, of_head, of_last = found[0], found[1], found[2], found[3:]
        of_blocks = ()
        for n in range(len(self.net.h) - 1, -1, -1):
            dy, of_block = self.backward(n, inputs[n], dy, bias, self.of_layer(n, masks))
            of_blocks = (*of_block, *of_blocks)
        if not self.rest_trained:
            return (loss, *of_blocks, of_head) if self.head_trained else (loss, *of_blocks)
        embedded = masks[: self.on_hidden]
        of_words, of_positions = self.ends.of_embeddings(tokens, positions, dy, *embedded)
        if self.tied:
            return (loss, of_words + of_head, of_positions, *of_blocks, *of_last)
        return (loss, of_words, of_positions, *of_blocks, *of_last, of_head)

    def backward(
        self, n: int, x: Tensor, dy: Tensor, bias: Tensor, masks: BlockMasks
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the gradients of a block: of its input x, and of its weights."""
        block = self.net.h[n]
        if self.recompute_attention:
            middle = block.attention(x, bias, masks)
            of_middle, of_second = self.of_both(block.feed_forward, self.second[n], middle, bias, masks, dy)
            dy = of_middle[0]
            x = ops.depend(x, dy)
            of_x, of_first = self.of_both(block.attention, self.first[n], x, bias, masks, dy)
            return of_x[0], (*of_first, *of_second)
        if self.recompute:
            x = ops.depend(x, dy)
        of_x, of_block = self.of_both(block, self.whole[n], x, bias, masks, dy)
        return of_x[0], of_block

    def of_layer(self, n: int, masks: Masks) -> BlockMasks:
        """Return the masks of one block, out of them all in the order in which they are drawn."""
        return of_sites(masks[self.on_hidden + n * sum(self.of_block) :], self.of_block)


def _parameters(*cells: nn.Cell) -> ParameterTuple:
    return ParameterTuple([weight for cell in cells for weight in cell.trainable_params()])
