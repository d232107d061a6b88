"""The model of this folder's model.pt2, by torch.export.

torch.export.load runs code that lies in the file: load none that a stranger gives you.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class Model:
    """A GPT-2 that goes on from keys and values."""

    def __init__(self, folder: Path | str) -> None:
        self._config = json.loads((Path(folder) / "config.json").read_text())
        self._step = torch.export.load(Path(folder) / "model.pt2").module()

    @torch.inference_mode()
    def feed(self, tokens: NDArray[np.int64], past: Any = None) -> tuple[NDArray[np.float32], Any]:
        """Return (B, T, V) logits of (B, T) tokens after those that `past` holds, and what holds all."""
        if past is None:
            layers, heads, width = (self._config[key] for key in ("n_layer", "n_head", "n_embd"))
            past = torch.zeros(layers, 2, len(tokens), heads, 0, width // heads)
        logits, present = self._step(torch.from_numpy(tokens), past)
        return logits.numpy(), present
