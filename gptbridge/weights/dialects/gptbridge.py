"""A run's own checkpoints: Hugging Face's form, canonical names. How training goes on lies beside."""

from __future__ import annotations

from gptbridge.weights.dialects.dialect import Dialect
from gptbridge.weights.dialects.huggingface import CONFIG, config_of, read_model, variant
from gptbridge.weights.dialects.huggingface import DIALECT as HUGGING_FACE

__all__ = ["DIALECT", "config_of", "read_model"]

DIALECT = Dialect(
    "gptbridge",
    preference=20,
    layouts=(variant("gptbridge", "canonical", ""),),
    config=CONFIG,
    files=HUGGING_FACE.files,
    adapters=HUGGING_FACE.adapters,
    same_names=("torch",),
)
