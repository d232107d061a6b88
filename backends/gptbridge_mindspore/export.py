"""The model as a MindIR graph, of one text that fills all positions: what is shorter is padded."""

from __future__ import annotations

from pathlib import Path

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn, ops

from gptbridge.session import Device
from gptbridge.weights.layouts.arrays import Read
from gptbridge.weights.shards import load
from gptbridge_mindspore.model import GPT
from gptbridge_mindspore.session import MindSporeModel, causal_bias, positions
from gptbridge_specs import RunSpec


class Whole(nn.Cell):
    """From tokens (1, T), logits (1, T, V)."""

    def __init__(self, model: GPT, length: int) -> None:
        super().__init__()
        self.model = model
        self.positions, self.bias = Tensor(positions((1, length))), Tensor(causal_bias(length))
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, tokens: Tensor) -> Tensor:
        """Compute a whole text."""
        hidden = self.model(tokens, self.positions, self.bias)
        logits = self.product(hidden.reshape(-1, hidden.shape[-1]), self.model.head)
        return logits.reshape(1, tokens.shape[1], -1)


def export(spec: RunSpec, device: Device, read: Read, folder: Path) -> list[str]:
    """Write model.mindir; return the names of the files."""
    opened, length = MindSporeModel(spec, device), spec.model.max_position_embeddings
    load(opened.shards(), read)
    whole = Whole(opened._model, length)
    whole.set_train(False)
    tokens = Tensor(np.zeros((1, length), np.int32))
    ms.export(whole, tokens, file_name=str(folder / "model"), file_format="MINDIR")
    return sorted(path.name for path in folder.iterdir())
