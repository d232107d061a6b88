"""Clipping and the update rules in NumPy, float64 inside. Weights are canonical, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.reference.gpt import Array, Weights
from gptbridge.weights.architecture import parameters, weight_decay
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import OptimizerSpec


def gradient_norm(gradients: Mapping[str, NDArray[Any]]) -> float:
    """Return the L2 norm of all gradients taken as one vector."""
    return math.sqrt(sum(float(np.square(g, dtype=np.float64).sum()) for g in gradients.values()))


def clip(gradients: Mapping[str, Array], limit: float | None) -> dict[str, Array]:
    """Return the gradients scaled so that their norm is `limit` at the most; None: unchanged."""
    norm = gradient_norm(gradients)
    factor = 1.0 if limit is None else min(1.0, limit / max(norm, 1e-300))
    return {name: gradient * factor for name, gradient in gradients.items()}


def sgd_step(
    model: ModelSpec,
    optimizer: OptimizerSpec,
    weights: Weights,
    gradients: Mapping[str, Array],
    learning_rate: float,
) -> dict[str, Array]:
    """Return the weights after p *= 1 - lr*decay; p -= lr*g, with g clipped as `optimizer` says."""
    clipped = clip(gradients, optimizer.clip_grad_norm)
    kept = _decay_factors(model, optimizer, learning_rate)
    return {name: weights[name] * kept[name] - learning_rate * g for name, g in clipped.items()}


def adamw_step(
    model: ModelSpec,
    optimizer: OptimizerSpec,
    weights: Weights,
    moments: Weights,
    gradients: Mapping[str, Array],
    learning_rate: float,
    update: int,
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Return weights and moments after update number `update` (1 is the first; no moments yet: zeros).

    Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2, bias-corrected.
    """
    beta1, beta2 = optimizer.beta1, optimizer.beta2
    kept = _decay_factors(model, optimizer, learning_rate)
    new_weights: dict[str, Array] = {}
    new_moments: dict[str, Array] = {}
    for name, g in clip(gradients, optimizer.clip_grad_norm).items():
        m = beta1 * moments.get(f"{name}.exp_avg", 0.0) + (1 - beta1) * g
        v = beta2 * moments.get(f"{name}.exp_avg_sq", 0.0) + (1 - beta2) * g * g
        m_hat, v_hat = m / (1 - beta1**update), v / (1 - beta2**update)
        change = m_hat / (np.sqrt(v_hat) + optimizer.epsilon)
        new_weights[name] = weights[name] * kept[name] - learning_rate * change
        new_moments |= {f"{name}.exp_avg": m, f"{name}.exp_avg_sq": v}
    return new_weights, new_moments


def _decay_factors(model: ModelSpec, optimizer: OptimizerSpec, learning_rate: float) -> dict[str, float]:
    """Return what decoupled decay leaves of each weight in one step."""
    return {p.name: 1 - learning_rate * weight_decay(p, optimizer) for p in parameters(model)}
