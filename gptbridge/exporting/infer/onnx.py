"""The model of this folder's model.onnx, by onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray


class Model:
    """A GPT-2 that goes on from keys and values."""

    def __init__(self, folder: Path | str) -> None:
        self._config = json.loads((Path(folder) / "config.json").read_text())
        self._session = onnxruntime.InferenceSession(
            str(Path(folder) / "model.onnx"), providers=["CPUExecutionProvider"]
        )

    def feed(self, tokens: NDArray[np.int64], past: Any = None) -> tuple[NDArray[np.float32], Any]:
        """Return (B, T, V) logits of (B, T) tokens after those that `past` holds, and what holds all."""
        if past is None:
            layers, heads, width = (self._config[key] for key in ("n_layer", "n_head", "n_embd"))
            past = np.zeros((layers, 2, len(tokens), heads, 0, width // heads), np.float32)
        logits, present = self._session.run(None, {"tokens": tokens.astype(np.int64), "past": past})
        return logits, present
