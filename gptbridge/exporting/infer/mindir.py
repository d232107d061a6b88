"""The model of this folder's model.mindir, by MindSpore."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mindspore
import numpy as np
from numpy.typing import NDArray


class Model:
    """A GPT-2 that computes one text at a time, over all positions. It keeps no keys and values."""

    def __init__(self, folder: Path | str) -> None:
        self._places = json.loads((Path(folder) / "config.json").read_text())["n_positions"]
        (graph,) = Path(folder).glob("model*.mindir")  # of large models its variables lie apart
        self._graph = mindspore.nn.GraphCell(mindspore.load(str(graph)))

    def feed(self, tokens: NDArray[np.int64], past: Any = None) -> tuple[NDArray[np.float32], Any]:
        """Return (B, T, V) logits of (B, T) tokens after those of `past`, and all of them."""
        whole = tokens if past is None else np.concatenate([past, tokens], axis=1)
        length = whole.shape[1]
        padded = np.zeros((len(whole), self._places), np.int32)
        padded[:, :length] = whole
        logits = [self._graph(mindspore.Tensor(row[None])).asnumpy() for row in padded]
        return np.concatenate(logits)[:, length - tokens.shape[1] : length], whole
