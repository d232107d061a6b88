"""The model of this folder's model.json and model.pdiparams, by paddle.inference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from paddle import inference


class Model:
    """A GPT-2 that goes on from keys and values."""

    def __init__(self, folder: Path | str) -> None:
        inside = Path(folder)
        self._description = json.loads((inside / "config.json").read_text())
        config = inference.Config(str(inside / "model.json"), str(inside / "model.pdiparams"))
        config.disable_gpu()
        config.disable_mkldnn()  # oneDNN fails on a text's first step, which has nothing before it
        config.disable_glog_info()
        self._predictor = inference.create_predictor(config)

    def feed(self, tokens: NDArray[np.int64], past: Any = None) -> tuple[NDArray[np.float32], Any]:
        """Return (B, T, V) logits of (B, T) tokens after those that `past` holds, and what holds all."""
        if past is None:
            layers, heads, width = (self._description[key] for key in ("n_layer", "n_head", "n_embd"))
            past = np.zeros((layers, 2, len(tokens), heads, 0, width // heads), np.float32)
        predictor = self._predictor
        for name, array in (("tokens", tokens), ("past", past)):
            predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(array))
        predictor.run()
        logits, present = (
            predictor.get_output_handle(name).copy_to_cpu() for name in predictor.get_output_names()
        )
        return logits, present
