"""Save and open `ckpt.pt` files as nanoGPT does, with a model of the same names written anew.

One JSON line each: {"save": FOLDER, "form": one of FORMS, "ids": ROWS} trains a small random model for a
step and saves it; {"open": FOLDER, "ids": ROWS} opens one, as sample.py does, and trains it for a step as
train.py does. Both compute the logits of these tokens into FOLDER/logits.npy.
"""

from __future__ import annotations

import json
import math
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

ARGUMENTS = {"n_layer": 3, "n_head": 4, "n_embd": 24, "block_size": 20, "vocab_size": 61, "dropout": 0.0}
# what GPTConfig was given, and what else differs between releases and runs
FORMS: dict[str, dict[str, Any]] = {
    "today": {"bias": True},
    "bias-free": {"bias": False},
    "compiled": {"bias": True, "prefix": "_orig_mod."},
    "without flash attention": {"bias": True, "masks": True},
    "of January 2023": {"masks": True, "tanh": True},
    "untied": {"masks": True, "tanh": True, "tied": False},
}


class Norm(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * self.weight
        return scaled if self.bias is None else scaled + self.bias


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, positions: int, bias: bool, masks: bool) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = nn.Linear(width, 3 * width, bias=bias)
        self.c_proj = nn.Linear(width, width, bias=bias)
        if masks:
            self.register_buffer("bias", torch.ones(1, 1, positions, positions).tril())

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        q, k, v = self.c_attn(x).reshape(rows, length, 3, self.heads, width // self.heads).unbind(2)
        scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(width // self.heads)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        shares = scores.masked_fill(later, -math.inf).softmax(-1)
        mixed: Tensor = self.c_proj(torch.einsum("bhts,bshd->bthd", shares, v).reshape(x.shape))
        return mixed


class Wide(nn.Module):
    def __init__(self, width: int, bias: bool, tanh: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width, bias=bias)
        self.c_proj = nn.Linear(4 * width, width, bias=bias)
        self.form = "tanh" if tanh else "none"

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.c_proj(functional.gelu(self.c_fc(x), approximate=self.form))
        return y


class Layer(nn.Module):
    def __init__(self, given: dict[str, Any], bias: bool, masks: bool, tanh: bool) -> None:
        super().__init__()
        width = given["n_embd"]
        self.ln_1, self.ln_2 = Norm(width, bias), Norm(width, bias)
        self.attn = Attention(width, given["n_head"], given["block_size"], bias, masks)
        self.mlp = Wide(width, bias, tanh)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        y: Tensor = x + self.mlp(self.ln_2(x))
        return y


class Model(nn.Module):
    def __init__(
        self, given: dict[str, Any], masks: bool = False, tanh: bool = False, tied: bool = True
    ) -> None:
        super().__init__()
        bias, width = given.get("bias", True), given["n_embd"]
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(given["vocab_size"], width),
                "wpe": nn.Embedding(given["block_size"], width),
                "h": nn.ModuleList(Layer(given, bias, masks, tanh) for _ in range(given["n_layer"])),
                "ln_f": Norm(width, bias),
            }
        )
        self.lm_head = nn.Linear(width, given["vocab_size"], bias=False)
        if tied:
            self.lm_head.weight = self.transformer["wte"].weight  # type: ignore[assignment]

    def forward(self, ids: Tensor) -> Tensor:
        x = self.transformer["wte"](ids) + self.transformer["wpe"](torch.arange(ids.shape[1]))
        for layer in self.transformer["h"]:  # type: ignore[attr-defined]
            x = layer(x)
        logits: Tensor = self.lm_head(self.transformer["ln_f"](x))
        return logits


def optimizer_of(model: Model) -> torch.optim.AdamW:
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=6e-4, betas=(0.9, 0.95))


def step(model: Model, optimizer: torch.optim.Optimizer, ids: Tensor) -> Tensor:
    scores = model(ids[:, :-1])
    loss = functional.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def save(folder: Path, form: str, ids: Tensor) -> None:
    options = dict(FORMS[form])
    prefix = options.pop("prefix", "")
    given = {**ARGUMENTS, **{key: options.pop(key) for key in ("bias",) if key in options}}
    torch.manual_seed(7)
    model = Model(given, **options)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    optimizer = optimizer_of(model)
    loss = step(model, optimizer, ids)
    checkpoint = {
        "model": {prefix + name: tensor for name, tensor in model.state_dict().items()},
        "optimizer": optimizer.state_dict(),
        "model_args": given,
        "iter_num": 1,
        "best_val_loss": loss,
        "config": {"n_layer": 12, "dataset": "openwebtext", "bias": False, "learning_rate": 6e-4},
    }
    torch.save(checkpoint, folder / "ckpt.pt")
    write_logits(model, ids, folder)


def open_(folder: Path, ids: Tensor) -> dict[str, Any]:
    checkpoint = torch.load(folder / "ckpt.pt", weights_only=True)
    model = Model(checkpoint["model_args"])
    model.load_state_dict(checkpoint["model"])
    write_logits(model, ids, folder)
    optimizer = optimizer_of(model)
    optimizer.load_state_dict(checkpoint["optimizer"])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    step(model, optimizer, ids)
    changed = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    rest = {key: checkpoint[key] for key in ("model_args", "iter_num", "best_val_loss", "config")}
    return {**rest, "changed": all(changed), "decays": decays}


def write_logits(model: Model, ids: Tensor, folder: Path) -> None:
    with torch.no_grad():
        np.save(folder / "logits.npy", deepcopy(model).double()(ids).numpy())


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        ids = torch.tensor(request["ids"])
        answer: dict[str, Any] = {}
        if "save" in request:
            save(Path(request["save"]), request["form"], ids)
        else:
            answer = open_(Path(request["open"]), ids)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


main()
