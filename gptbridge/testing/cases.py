"""What the kit feeds a backend: odd sizes and asymmetric values, so that no mistake hides in symmetry."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge import reference
from gptbridge.rules.dropout import dropout_seed
from gptbridge.session import MOMENTS, Batch
from gptbridge.weights.architecture import parameters, shapes
from gptbridge_specs import ModelSpec, RunSpec
from gptbridge_specs.run import TaskSpec

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


def weights(model: ModelSpec, seed: int = 1, task: TaskSpec | None = None) -> Arrays:
    """Return seeded weights of every parameter; LayerNorm scales lie around 1."""
    stream = np.random.default_rng(seed)
    table: Arrays = {}
    sizes = shapes(model, task)
    for p in parameters(model, task):
        centre, spread = (1.0, 0.3) if p.initial == "ones" else (0.0, 0.4 if p.decay else 0.3)
        table[p.name] = (centre + spread * stream.standard_normal(sizes[p.name])).astype(np.float32)
    return table


def moments(model: ModelSpec, seed: int = 2) -> Arrays:
    """Return seeded AdamW moments as NAME.exp_avg and NAME.exp_avg_sq; the second are well above zero."""
    stream = np.random.default_rng(seed)
    table: Arrays = {}
    for name, shape in shapes(model).items():
        first, second = stream.standard_normal((2, *shape))
        values = (0.05 * first, 0.01 * second**2 + 0.002)
        table |= {f"{name}.{kind}": v.astype(np.float32) for kind, v in zip(MOMENTS, values, strict=True)}
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
        inputs=np.ascontiguousarray(tokens[:, :-1]).reshape(shape),
        labels=np.ascontiguousarray(tokens[:, 1:]).reshape(shape),
        loss_mask=mask.reshape(shape),
        loss_tokens=int(mask.sum()),
        dropout_seeds=seeds(step, micro_batches),
    )


def starts(shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Return where records start in rows of LENGTH: three in each, their lengths differ from row to row."""
    found = np.zeros(shape, np.int32)
    for number, row in enumerate(found.reshape(-1, LENGTH)):
        for start in (1 + number % 4, 6 + number % 5):
            row[start:] = start
    return found


def packed(batch: Batch) -> Batch:
    """Return `batch` with three records in each row."""
    return replace(batch, starts=starts(batch.inputs.shape))


def records(batch: Batch) -> list[tuple[int, Batch, Batch]]:
    """Return where each record of a `packed` batch begins, the batch in which it alone counts, and itself."""
    begun, found = starts(batch.inputs.shape), []
    for row in np.ndindex(begun.shape[:2]):
        for start in np.unique(begun[row]):
            here = np.flatnonzero(begun[row] == start)
            mask = np.zeros_like(batch.loss_mask)
            mask[(*row, here)] = True
            inputs, labels = (array[row][here][None, None] for array in (batch.inputs, batch.labels))
            lone = Batch(inputs, labels, np.ones(inputs.shape, np.bool_), len(here), (0,))
            found.append((int(start), replace(batch, loss_mask=mask, loss_tokens=len(here)), lone))
    return found


def seeds(step: int, micro_batches: int) -> tuple[int, ...]:
    """Return the dropout seeds of a step's micro-batches."""
    return tuple(dropout_seed(1, step, number) for number in range(micro_batches))


def without_blocks(model: ModelSpec) -> Arrays:
    """Return `weights` whose blocks add nothing to what passes them."""
    return {n: np.zeros_like(w) if ".c_proj." in n else w for n, w in weights(model).items()}


def one_token(step: int, *, micro_batches: int = 1) -> Batch:
    """Return a batch whose every micro-batch is the same sample of one token."""
    tokens = np.full((micro_batches, 1, 1), 5, np.int32)
    mask = np.ones(tokens.shape, np.bool_)
    return Batch(tokens, tokens + 4, mask, micro_batches, seeds(step, micro_batches))


def one_token_gradient(model: ModelSpec, weights: Arrays, dropout: NDArray[Any]) -> NDArray[Any]:
    """Return the (H,) gradient of what the blocks see of `one_token`, its embedding times `dropout`."""
    batch = one_token(1)
    token = weights["wte.weight"][batch.inputs.item()]
    seen = {n: w.astype(np.float64) for n, w in weights.items()}
    seen["wpe.weight"][0] = (token + seen["wpe.weight"][0]) * dropout - token
    _, gradients = reference.loss_and_gradients(model, seen, batch)
    gradient: NDArray[Any] = gradients["wpe.weight"][0]
    return gradient
