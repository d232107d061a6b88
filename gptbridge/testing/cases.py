"""What the kit feeds a backend: odd sizes and asymmetric values, so that no mistake hides in symmetry."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.session import EXP_AVG, EXP_AVG_SQ, Batch
from gptbridge.weights.canonical import parameters
from gptbridge_specs import ModelSpec, RunSpec

Arrays = dict[str, NDArray[np.float32]]

SAMPLES, LENGTH = 8, 11

_MODEL = {
    "vocab_size": 37,
    "hidden_size": 24,
    "num_layers": 2,
    "num_attention_heads": 3,
    "ffn_hidden_size": 56,
    "max_position_embeddings": 13,
    "layernorm_epsilon": 1e-3,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def run_spec(device: str, model: dict[str, Any] | None = None, **parts: dict[str, Any]) -> RunSpec:
    """Return a run of a tiny model on `device`: fp32, no dropout, plain SGD without clipping or decay."""
    content: dict[str, dict[str, Any]] = {
        "model": {**_MODEL, **(model or {})},
        "optimizer": {"name": "sgd", "weight_decay": 0.0, "clip_grad_norm": None},
        "training": {"global_batch_size": SAMPLES, "seq_length": LENGTH, "device": device},
    }
    for name, fields in parts.items():
        content[name] = {**content.get(name, {}), **fields}
    return RunSpec.model_validate(content)


def weights(model: ModelSpec, seed: int = 1) -> Arrays:
    """Return seeded weights of every parameter; LayerNorm scales lie around 1."""
    stream = np.random.default_rng(seed)
    table: Arrays = {}
    for p in parameters(model):
        centre, spread = (1.0, 0.3) if p.initial == "ones" else (0.0, 0.4 if p.is_matrix else 0.3)
        table[p.name] = (centre + spread * stream.standard_normal(p.shape)).astype(np.float32)
    return table


def moments(model: ModelSpec, seed: int = 2) -> Arrays:
    """Return seeded AdamW moments; second moments are well above zero."""
    stream = np.random.default_rng(seed)
    table: Arrays = {}
    for p in parameters(model):
        first, second = stream.standard_normal((2, *p.shape))
        table[p.name + EXP_AVG] = (0.05 * first).astype(np.float32)
        table[p.name + EXP_AVG_SQ] = (0.01 * second**2 + 0.002).astype(np.float32)
    return table


def zero_moments(model: ModelSpec) -> Arrays:
    """Return the moments before the first update."""
    return {name: np.zeros_like(array) for name, array in moments(model).items()}


def batch(model: ModelSpec, *, micro_batches: int = 2, step: int = 1, kept: float = 0.7) -> Batch:
    """Return the same 8 samples in any number of micro-batches; about `kept` of the labels count.

    The mask is uneven, so that a mean of micro-batch means differs from the mean over tokens.
    """
    stream = np.random.default_rng(3)
    tokens = stream.integers(0, model.vocab_size, (SAMPLES, LENGTH + 1), dtype=np.int32)
    share = np.linspace(0.4, 1.6, SAMPLES)[:, None] * kept
    mask = stream.random((SAMPLES, LENGTH)) < share
    shape = (micro_batches, SAMPLES // micro_batches, LENGTH)
    return Batch(
        step=step,
        inputs=np.ascontiguousarray(tokens[:, :-1]).reshape(shape),
        labels=np.ascontiguousarray(tokens[:, 1:]).reshape(shape),
        loss_mask=mask.reshape(shape),
        loss_tokens=int(mask.sum()),
    )
