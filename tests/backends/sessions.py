"""The small runs on which the tests of each framework's session stand."""

from __future__ import annotations

from typing import Any

import numpy as np

from gptbridge.session import Batch
from gptbridge_specs import RunSpec

GRANULARITIES = ("none", "core_attn", "full_attn", "full")
VOCAB, LENGTH = 67, 16
DROPOUT = {"hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.2}


def make_spec(**parts: dict[str, Any]) -> RunSpec:
    """Return a tiny run without dropout, with weights large enough for mistakes to show."""
    model = {
        "vocab_size": VOCAB,
        "hidden_size": 24,
        "num_layers": 2,
        "max_position_embeddings": LENGTH,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.3,
    }
    training = {"seq_length": LENGTH, "global_batch_size": 4, "device": "cpu"}
    parts["model"] = model | parts.get("model", {})
    parts["training"] = training | parts.get("training", {})
    return RunSpec.model_validate(parts)


def make_batch(step: int = 1) -> Batch:
    """Return random tokens, keyed by the step."""
    tokens = np.random.default_rng(step).integers(0, VOCAB, (1, 4, LENGTH + 1), dtype=np.int32)
    mask = np.ones((1, 4, LENGTH), np.bool_)
    return Batch(step, tokens[..., :-1], tokens[..., 1:], mask, mask.size)
