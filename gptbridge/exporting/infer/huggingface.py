"""The model of this folder, as transformers opens it."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM
from transformers.utils import logging

# What holds keys and values has other names in other releases, which warn of it.
warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
logging.set_verbosity_error()
logging.disable_progress_bar()


class Model:
    """A GPT-2 in float32."""

    def __init__(self, folder: Path | str) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder).float().eval()

    @torch.inference_mode()
    def feed(self, tokens: NDArray[np.int64], past: Any = None) -> tuple[NDArray[np.float32], Any]:
        """Return (B, T, V) logits of (B, T) tokens after those that `past` holds, and what holds all."""
        out = self._model(torch.from_numpy(tokens), past_key_values=past, use_cache=True)
        return out.logits.numpy(), out.past_key_values
