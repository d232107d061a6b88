"""What a spec comes to, in numbers: known before anything is launched."""

from __future__ import annotations

from typing import Any

from gptbridge.weights.architecture import count_parameters
from gptbridge_specs import RunSpec


def spec_facts(spec: RunSpec) -> dict[str, Any]:
    """Return the size of the model and of the run."""
    training = spec.training
    return {
        "parameters": count_parameters(spec.model, spec.task),
        "trained_parameters": count_parameters(spec.model, spec.task, trained=True),
        "global_batch_size": training.global_batch_size,
        "tokens_per_step": spec.tokens_per_step,
        "max_steps": training.max_steps,
        "stop_after_steps": training.stop_after_steps,
        "devices": spec.parallel.world_size,
        "compute": spec.precision.compute,
    }
