"""Mistakes that real backends have made, as the values that each would lead to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge import reference
from gptbridge.session import Batch
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import OptimizerSpec

Weights = dict[str, NDArray[Any]]


def in_weights(model: ModelSpec, weights: Weights) -> dict[str, tuple[ModelSpec, Weights]]:
    """Return models and weights as a wrong weight table would load them."""
    heads, size, hidden = model.num_attention_heads, model.head_size, model.hidden_size

    def changed(name: str, change: Callable[[NDArray[Any]], NDArray[Any]]) -> tuple[ModelSpec, Weights]:
        return model, {**weights, name: change(weights[name])}

    def interleaved() -> tuple[ModelSpec, Weights]:
        names = [f"h.1.attn.{part}.weight" for part in "qkv"]
        fused = np.concatenate([weights[name].reshape(hidden, heads, 1, size) for name in names], 2)
        return model, {**weights, **dict(zip(names, np.split(fused.reshape(hidden, -1), 3, 1), strict=True))}

    def head_last(matrix: NDArray[Any]) -> NDArray[Any]:
        return matrix.reshape(hidden, heads, size).swapaxes(1, 2).reshape(hidden, hidden)

    def exchanged(first: str, second: str) -> tuple[ModelSpec, Weights]:
        return model, {**weights, first: weights[second], second: weights[first]}

    other = "quick_gelu" if model.activation != "quick_gelu" else "gelu_tanh"
    return {
        "attn.c_proj.weight is transposed": changed("h.0.attn.c_proj.weight", np.transpose),
        "q, k and v are interleaved by head": interleaved(),
        "heads and head sizes are swapped": changed("h.0.attn.k.weight", head_last),
        "positions start at 1": changed("wpe.weight", lambda wpe: np.roll(wpe, -1, 0)),
        "q and k are swapped": exchanged("h.0.attn.q.weight", "h.0.attn.k.weight"),
        "ln_1 and ln_2 are swapped": exchanged("h.0.ln_1.weight", "h.0.ln_2.weight"),
        "layernorm_epsilon is ignored": (model.model_copy(update={"layernorm_epsilon": 1e-5}), weights),
        f"the activation is {other}": (model.model_copy(update={"activation": other}), weights),
    }


def in_gradients(model: ModelSpec, weights: Weights, batch: Batch) -> dict[str, Weights]:
    """Return gradients as a wrong loss or a wrong backward pass would give them."""
    _, right = reference.loss_and_gradients(model, weights, batch)
    unmasked = replace(batch, loss_mask=np.ones_like(batch.loss_mask), loss_tokens=batch.loss_mask.size)
    halves = [
        replace(
            batch,
            inputs=batch.inputs[n : n + 1],
            labels=batch.labels[n : n + 1],
            loss_mask=batch.loss_mask[n : n + 1],
            loss_tokens=int(batch.loss_mask[n].sum()),
        )
        for n in range(len(batch.inputs))
    ]
    parts = [reference.loss_and_gradients(model, weights, half)[1] for half in halves]
    name = "h.0.attn.c_proj.weight"
    found: dict[str, Weights] = {
        "the loss is scaled by 2": {key: 2 * g for key, g in right.items()},
        "the loss mask is ignored": reference.loss_and_gradients(model, weights, unmasked)[1],
        "micro-batch means are averaged": {key: np.mean([p[key] for p in parts], 0) for key in right},
        "only the last micro-batch counts": parts[-1],
        "attn.c_proj's gradient is transposed": {**right, name: right[name].T},
    }
    if model.tie_word_embeddings:
        untied = model.model_copy(update={"tie_word_embeddings": False})
        split = {**weights, "lm_head.weight": weights["wte.weight"]}
        half_gradients = reference.loss_and_gradients(untied, split, batch)[1]
        head = half_gradients.pop("lm_head.weight")
        found["the tied embedding misses the head's gradient"] = half_gradients
        found["the tied embedding misses the input's gradient"] = {**half_gradients, "wte.weight": head}
    return found


def in_adamw(optimizer: OptimizerSpec) -> dict[str, OptimizerSpec]:
    """Return optimizers as a wrong AdamW would run them."""
    return {
        "gradients are not clipped": optimizer.model_copy(update={"clip_grad_norm": None}),
        "biases and LayerNorm decay too": optimizer.model_copy(update={"decay": "all"}),
        "nothing decays": optimizer.model_copy(update={"weight_decay": 0.0}),
        "beta1 and beta2 are swapped": optimizer.model_copy(
            update={"beta1": optimizer.beta2, "beta2": optimizer.beta1}
        ),
        "epsilon is ignored": optimizer.model_copy(update={"epsilon": 1e-12}),
    }
