"""Small models without any symmetry, in Hugging Face's form, with the byte tokenizer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptbridge.data.tokenizers import load_tokenizer
from gptbridge_specs import ModelSpec
from tests.weights.conversion.checkpoints import apart, random_weights, write_hugging_face

PLAIN = ModelSpec(
    vocab_size=257,
    hidden_size=24,
    num_layers=2,
    num_attention_heads=3,
    max_position_embeddings=48,
    layernorm_epsilon=1e-4,
)
ODD = ModelSpec(
    vocab_size=261,  # more than the tokenizer has
    hidden_size=39,
    num_layers=3,
    num_attention_heads=3,
    ffn_hidden_size=50,
    max_position_embeddings=11,
    activation="gelu_erf",
    tie_word_embeddings=False,
)
MODELS = {"plain": PLAIN, "odd": ODD, "run": ODD.model_copy(update={"activation": "gelu_tanh"})}


def write_source(folder: Path, model: ModelSpec, seed: int = 0) -> Path:
    """Write a checkpoint with a tokenizer."""
    write_hugging_face(folder, model, random_weights(model, seed))
    load_tokenizer("byte").save(folder)
    return folder


def canonical(model: ModelSpec, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Return the weights that `write_source` writes, by canonical name."""
    return apart(random_weights(model, seed))


def blocks_swapped(weights: dict[str, NDArray[np.float32]]) -> dict[str, NDArray[np.float32]]:
    """Return the weights with the first two layers exchanged: another model of the same shapes."""
    other = {"h.0.": "h.1.", "h.1.": "h.0."}
    return {other.get(name[:4], name[:4]) + name[4:]: array for name, array in weights.items()}
