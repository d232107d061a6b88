"""The same GPT as a bare torch loop: what an engineer writes by hand without gptbridge.

`python benchmarks/bare_torch.py --steps 20` prints one JSON line; see workload.py.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from torch import Tensor, nn
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


class Block(nn.Module):
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
        q, k, v = self.c_attn(self.ln_1(x)).split(hidden, dim=2)
        q, k, v = (y.view(batch, length, self.heads, -1).transpose(1, 2) for y in (q, k, v))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(attended.transpose(1, 2).reshape(batch, length, hidden))
        y: Tensor = x + self.proj(F.gelu(self.fc(self.ln_2(x)), approximate="tanh"))
        return y


class GPT(nn.Module):
    def __init__(self, model: ModelSpec) -> None:
        super().__init__()
        self.wte = nn.Embedding(model.vocab_size, model.hidden_size)
        self.wpe = nn.Embedding(model.max_position_embeddings, model.hidden_size)
        blocks = (Block(model.hidden_size, model.num_attention_heads) for _ in range(model.num_layers))
        self.h = nn.ModuleList(blocks)
        self.ln_f = nn.LayerNorm(model.hidden_size)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        logits = self.ln_f(x) @ self.wte.weight.t()
        return F.cross_entropy(logits.view(-1, logits.shape[-1]).float(), labels.flatten())


def build(spec: ModelSpec) -> GPT:
    """Return the model with gptbridge's initial weights, so that the losses can be compared."""
    model = GPT(spec)
    initial = initial_weights(spec).items()
    with torch.no_grad():
        for parameter, (name, value) in zip(model.parameters(), initial, strict=True):
            array = torch.from_numpy(value)
            is_linear = array.dim() == 2 and name.startswith("h.")
            parameter.copy_(array.t() if is_linear else array)
    return model


def main() -> None:
    workload = read_arguments(argparse.ArgumentParser(description=__doc__))
    model = build(workload.model)
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE, BETAS, EPSILON, fused=True)
    bf16 = workload.precision == "bf16"

    def step(inputs: Tokens, labels: Tokens) -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(torch.tensor(inputs).long(), torch.tensor(labels).long())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    measure(workload, step)


if __name__ == "__main__":
    main()
