"""The model as a program and parameters that paddle.inference runs.

Shapes: B samples, T new tokens, P tokens before them, L layers, N heads of D, V vocabulary.
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import paddle
import paddle.nn.functional as F
from paddle import Tensor, nn
from paddle.static import InputSpec

from gptbridge.session import Device
from gptbridge.weights.layouts.arrays import Read
from gptbridge.weights.shards import load
from gptbridge_paddle.model import GPT, Block
from gptbridge_paddle.session import PaddleModel
from gptbridge_specs import ModelSpec, RunSpec


class Step(nn.Layer):
    """From tokens (B, T) and past (L, 2, B, N, P, D), logits (B, T, V) and present (L, 2, B, N, P + T, D).

    The model's own attention moves heads by their number of rows, which a program of any batch has not.
    """

    def __init__(self, model: GPT, spec: ModelSpec) -> None:
        super().__init__()
        self.model = model
        self.heads, self.head_size = spec.num_attention_heads, spec.head_size

    def forward(self, tokens: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Compute one step; P is 0 at the start of a text."""
        model = self.model
        held, new = paddle.shape(past)[4], paddle.shape(tokens)[1]
        places = paddle.arange(0, held + new, dtype="int64")
        positions = paddle.arange(held, held + new, dtype="int64")
        later = places.unsqueeze(0) > positions.unsqueeze(1)
        hidden = paddle.where(later, paddle.full([1], -math.inf), paddle.zeros([1]))
        x = model.wte(tokens) + model.wpe(positions)
        present = []
        for layer, block in enumerate(model.h.values()):
            y, grown = self._attend(block, block.ln_1(x), past[layer], hidden)
            present.append(grown)
            x = x + y
            x = x + block.mlp(block.ln_2(x))
        return paddle.matmul(model.ln_f(x), model.head, transpose_y=True), paddle.stack(present)

    def _attend(self, block: Block, x: Tensor, past: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Return (B, T, H) and the keys and values (2, B, N, P + T, D) of a layer."""
        qkv = block.attn.c_attn(x).reshape([0, 0, 3, self.heads, self.head_size])
        q, k, v = qkv.transpose([2, 0, 3, 1, 4]).unbind(0)
        k, v = (paddle.concat([past[number], part], 2) for number, part in enumerate((k, v)))
        scores = paddle.matmul(q * self.head_size**-0.5, k, transpose_y=True) + hidden
        mixed = paddle.matmul(F.softmax(scores), v).transpose([0, 2, 1, 3])
        y = block.attn.c_proj(mixed.reshape([0, 0, self.heads * self.head_size]))
        return y, paddle.stack([k, v])


def export(spec: RunSpec, device: Device, read: Read, folder: Path) -> list[str]:
    """Write model.json and model.pdiparams; return the names of the files."""
    opened, model = PaddleModel(spec, device), spec.model
    load(opened.shards(), read)
    step = Step(opened._runs[0], model)
    step.eval()
    past = [model.num_layers, 2, None, model.num_attention_heads, None, model.head_size]
    inputs = [InputSpec([None, None], "int64", "tokens"), InputSpec(past, "float32", "past")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a program's tensors lie nowhere, and Paddle says so
        program = paddle.jit.to_static(step, input_spec=inputs, full_graph=True)
        paddle.jit.save(program, str(folder / "model"))
    return sorted(path.name for path in folder.iterdir())
