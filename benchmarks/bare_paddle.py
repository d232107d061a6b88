"""The same GPT as a bare Paddle loop: what an engineer writes by hand without gptbridge.

`python benchmarks/bare_paddle.py --layers 4 --hidden 256 --heads 4 --vocab 8192 --seq 256 --batch 8
--steps 20` prints one JSON line. Two warm-up steps are not timed.
"""

from __future__ import annotations

import argparse
import json
import os
import time

os.environ.setdefault("OMP_NUM_THREADS", str(len(os.sched_getaffinity(0))))
os.environ.setdefault("GLOG_minloglevel", "2")

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn

from gptbridge.weights.canonical import InitialWeights
from gptbridge_specs import ModelSpec

WARM_UP = 2


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
        qkv = self.c_attn(self.ln_1(x)).reshape([batch, length, 3, self.heads, hidden // self.heads])
        q, k, v = paddle.unbind(qkv, axis=2)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(attended.reshape([batch, length, hidden]))
        return x + self.proj(F.gelu(self.fc(self.ln_2(x)), approximate=True))


class GPT(nn.Layer):
    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.wte = nn.Embedding(model.vocab_size, model.hidden_size)
        self.wpe = nn.Embedding(model.max_position_embeddings, model.hidden_size)
        self.h = nn.LayerList(
            [Block(model.hidden_size, model.num_attention_heads) for _ in range(model.num_layers)]
        )
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
    initial = InitialWeights(spec, seed=1234).values()
    for parameter, value in zip(_canonical_order(model), initial, strict=True):
        parameter.set_value(value)
    return model


def _canonical_order(model: GPT) -> list[Tensor]:
    layers: list[nn.Layer] = [model.wte, model.wpe]
    for block in model.h:
        layers += [block.ln_1, block.c_attn, block.c_proj, block.ln_2, block.fc, block.proj]
    layers.append(model.ln_f)
    return [parameter for layer in layers for parameter in layer.parameters()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("layers", 4), ("hidden", 256), ("heads", 4), ("vocab", 8192)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("seq", 256), ("batch", 8), ("steps", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    model = build(
        ModelSpec(
            vocab_size=args.vocab,
            hidden_size=args.hidden,
            num_layers=args.layers,
            num_attention_heads=args.heads,
            max_position_embeddings=args.seq,
        )
    )
    matrices = {p.name for p in model.parameters() if p.ndim > 1}
    optimizer = paddle.optimizer.AdamW(
        1e-3,
        beta2=0.95,
        weight_decay=0.1,
        parameters=model.parameters(),
        apply_decay_param_fun=lambda name: name in matrices,
        grad_clip=nn.ClipGradByGlobalNorm(1.0),
    )
    data = np.random.default_rng(1234)
    losses: list[float] = []
    wall = cpu = 0.0
    for step in range(WARM_UP + args.steps):
        if step == WARM_UP:
            wall, cpu = time.perf_counter(), time.process_time()
        tokens = data.integers(0, args.vocab, (args.batch, args.seq + 1))
        loss = model(paddle.to_tensor(tokens[:, :-1]), paddle.to_tensor(tokens[:, 1:]))
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        losses.append(float(loss))
    count = args.steps * args.batch * args.seq
    figures = {
        "tokens_per_second": count / (time.perf_counter() - wall),
        "tokens_per_cpu_second": count / (time.process_time() - cpu),
        "losses": losses,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
