"""What a spec comes to, in numbers: known before anything is launched."""

from __future__ import annotations

from typing import Any

from gptbridge.weights.architecture import count_parameters
from gptbridge_specs import RunSpec

_FLOAT32 = 4


def spec_facts(spec: RunSpec) -> dict[str, Any]:
    """Return the size of the model and of the run."""
    training = spec.training
    return {
        "parameters": count_parameters(spec.model),
        "global_batch_size": training.global_batch_size,
        "tokens_per_step": spec.tokens_per_step,
        "max_steps": training.max_steps,
        "stop_after_steps": training.stop_after_steps,
        "devices": spec.parallel.world_size,
        "compute": spec.precision.compute,
    }


def memory_facts(spec: RunSpec) -> dict[str, int]:
    """Return the bytes of weights, gradients and moments in fp32 over all devices; no activations."""
    weights = _FLOAT32 * count_parameters(spec.model)
    return {
        "total_tokens": spec.tokens_per_step * spec.training.max_steps,
        "weights_bytes": weights,
        "gradients_bytes": weights,
        "optimizer_bytes": 2 * weights if spec.optimizer.name == "adamw" else 0,
    }
