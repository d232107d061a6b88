"""The same GPT as a bare Paddle loop: what an engineer writes by hand without gptbridge.

`python benchmarks/bare_paddle.py --steps 20` prints one JSON line; see workload.py.
"""

from __future__ import annotations

import argparse
import os

# Paddle's own default is one thread.
os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
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


class Block(nn.Layer):
    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(hidden)
        self.c_attn = nn.Linear(hidden, 3 * hidden)
        self.c_proj = nn.Linear(hidden, hidden)
        self.ln_2 = nn.LayerNorm(hidden)
        self.fc = nn.Linear(hidden, 4 * hidden)
        self.proj = nn.Linear(4 * hidden, hidden)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, hidden = x.shape
        q, k, v = paddle.split(self.c_attn(self.ln_1(x)), 3, axis=2)
        q, k, v = (y.reshape([batch, length, self.heads, -1]) for y in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(attended.reshape([batch, length, hidden]))
        return x + self.proj(F.gelu(self.fc(self.ln_2(x)), approximate=True))


class GPT(nn.Layer):
    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.wte = nn.Embedding(model.vocab_size, model.hidden_size)
        self.wpe = nn.Embedding(model.max_position_embeddings, model.hidden_size)
        blocks = [Block(model.hidden_size, model.num_attention_heads) for _ in range(model.num_layers)]
        self.h = nn.LayerList(blocks)
        self.ln_f = nn.LayerNorm(model.hidden_size)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(paddle.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        logits = paddle.matmul(self.ln_f(x), self.wte.weight, transpose_y=True)
        return F.cross_entropy(logits.reshape([-1, logits.shape[-1]]), labels.flatten())


def build(spec: ModelSpec) -> GPT:
    """Return the model with gptbridge's initial weights, so that the losses can be compared."""
    model = GPT(spec)
    for parameter, value in zip(model.parameters(), initial_weights(spec).values(), strict=True):
        parameter.set_value(value)
    return model


def main() -> None:
    workload = read_arguments(argparse.ArgumentParser(description=__doc__))
    if workload.precision != "fp32":
        raise SystemExit("Paddle computes in fp32 alone on CPU")
    model = build(workload.model)
    matrices = {p.name for p in model.parameters() if p.ndim > 1}
    optimizer = paddle.optimizer.AdamW(
        LEARNING_RATE,
        *BETAS,
        EPSILON,
        parameters=model.parameters(),
        weight_decay=WEIGHT_DECAY,
        apply_decay_param_fun=lambda name: name in matrices,
        grad_clip=nn.ClipGradByGlobalNorm(CLIP),
    )

    def step(inputs: Tokens, labels: Tokens) -> float:
        loss = model(paddle.to_tensor(inputs), paddle.to_tensor(labels))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return float(loss)

    measure(workload, step)


if __name__ == "__main__":
    main()
