"""The same GPT as a bare MindSpore loop: what an engineer writes by hand without gptbridge.

`python benchmarks/bare_mindspore.py --steps 20` prints one JSON line; see workload.py.
"""

from __future__ import annotations

import argparse
import math
import os

os.environ.setdefault("GLOG_v", "4")

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore.common.initializer import Zero, initializer
from workload import (
    BETAS,
    CLIP,
    EPSILON,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Tokens,
    initial_weights,
    measure,
    read_arguments,
)

from gptbridge_specs import ModelSpec


def weight(*shape: int) -> Parameter:
    return Parameter(initializer(Zero(), shape, ms.float32))


class Linear(nn.Cell):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = weight(inputs, outputs), weight(outputs)
        self.multiply = ops.MatMul()

    def construct(self, x: Tensor) -> Tensor:
        return self.multiply(x, self.weight) + self.bias


class LayerNorm(nn.Cell):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight, self.bias = weight(hidden), weight(hidden)
        self.normalize = ops.LayerNorm(-1, -1, 1e-5)

    def construct(self, x: Tensor) -> Tensor:
        return self.normalize(x, self.weight, self.bias)[0]


class Block(nn.Cell):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.scale = 1 / math.sqrt(hidden // heads)
        self.ln_1 = LayerNorm(hidden)
        self.c_attn = Linear(hidden, 3 * hidden)
        self.c_proj = Linear(hidden, hidden)
        self.ln_2 = LayerNorm(hidden)
        self.fc = Linear(hidden, 4 * hidden)
        self.proj = Linear(4 * hidden, hidden)
        self.split = ops.Split(-1, 3)
        self.scores = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()

    def construct(self, x: Tensor, bias: Tensor) -> Tensor:
        batch, length, hidden = x.shape
        rows = (batch * length, hidden)
        q, k, v = self.split(self.c_attn(self.ln_1(x.reshape(rows))))
        shape = (batch, length, self.heads, -1)
        q, k, v = (
            q.reshape(shape).transpose(0, 2, 1, 3),
            k.reshape(shape).transpose(0, 2, 1, 3),
            v.reshape(shape).transpose(0, 2, 1, 3),
        )
        attended = self.mix(ops.softmax(self.scores(q * self.scale, k) + bias, -1), v)
        x = x + self.c_proj(attended.transpose(0, 2, 1, 3).reshape(rows)).reshape(x.shape)
        inner = self.fc(self.ln_2(x.reshape(rows)))
        # 0.5 (1 + tanh u) is sigmoid(2 u). MindSpore's GELU operator takes twice as long on CPU,
        # and its tanh is off by 1e-4 there.
        inner = inner * ops.sigmoid(1.5957691216 * (inner + 0.044715 * inner * inner * inner))
        return x + self.proj(inner).reshape(x.shape)


class GPT(nn.Cell):
    def __init__(self, model: ModelSpec, length: int) -> None:
        super().__init__()
        self.wte = weight(model.vocab_size, model.hidden_size)
        self.wpe = weight(model.max_position_embeddings, model.hidden_size)
        blocks = [Block(model.hidden_size, model.num_attention_heads) for _ in range(model.num_layers)]
        self.h = nn.CellList(blocks)
        self.ln_f = LayerNorm(model.hidden_size)
        self.bias = Tensor(np.triu(np.full((length, length), -1e9, np.float32), 1))
        self.head = ops.MatMul(transpose_b=True)
        self.loss = ops.SparseSoftmaxCrossEntropyWithLogits()

    def construct(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = ops.gather(self.wte, tokens, 0) + self.wpe[: tokens.shape[1]]
        for block in self.h:
            x = block(x, self.bias)
        logits = self.head(self.ln_f(x.reshape(-1, x.shape[-1])), self.wte)
        return self.loss(logits, labels.reshape(-1))


class Step(nn.Cell):
    """Loss, gradients, clipping and AdamW in one graph: the fastest way that MindSpore has on CPU."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.weights = ms.ParameterTuple(model.trainable_params())
        self.exp_avg = self.weights.clone("exp_avg", init="zeros")
        self.exp_avg_sq = self.weights.clone("exp_avg_sq", init="zeros")
        self.decay = [WEIGHT_DECAY if weight.ndim > 1 else 0.0 for weight in self.weights]
        self.powers = Parameter(Tensor([1.0, 1.0], ms.float32))
        self.betas = Tensor(BETAS, ms.float32)
        self.loss_and_gradients = ms.value_and_grad(model, None, self.weights)
        self.update = ops.AdamWeightDecay()

    def construct(self, tokens: Tensor, labels: Tensor) -> Tensor:
        loss, gradients = self.loss_and_gradients(tokens, labels)
        self.apply(gradients)
        return loss

    def apply(self, gradients: tuple[Tensor, ...]) -> None:
        gradients = ops.clip_by_global_norm(gradients, CLIP)
        powers = self.powers * self.betas
        ops.assign(self.powers, powers)
        # The operator corrects no bias, so that the correction goes into rate, epsilon and decay.
        root = ops.sqrt(1 - powers[1])
        ratio = root / (1 - powers[0])
        for n in range(len(self.weights)):
            self.update(
                self.weights[n],
                self.exp_avg[n],
                self.exp_avg_sq[n],
                LEARNING_RATE * ratio,
                BETAS[0],
                BETAS[1],
                EPSILON * root,
                self.decay[n] / ratio,
                gradients[n],
            )


def main() -> None:
    workload = read_arguments(argparse.ArgumentParser(description=__doc__))
    if workload.precision != "fp32":
        raise SystemExit("MindSpore computes in fp32 alone on CPU")
    ms.set_context(mode=ms.GRAPH_MODE)
    model = GPT(workload.model, workload.seq)
    initial = initial_weights(workload.model).values()
    for parameter, value in zip(model.trainable_params(), initial, strict=True):
        parameter.set_data(Tensor(value))
    graph = Step(model)

    def step(inputs: Tokens, labels: Tokens) -> float:
        return float(graph(Tensor(inputs), Tensor(labels)))

    measure(workload, step)


if __name__ == "__main__":
    main()
