"""The hooks of the NumPy backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptbridge.hookspecs import BackendInfo, Problem, hookimpl
from gptbridge.plugins.capabilities import LANGUAGE_MODELING_ONLY, SINGLE_DEVICE, Limit, problems

if TYPE_CHECKING:
    from gptbridge.session import Device, DeviceKind, LanguageModel, Trainer
    from gptbridge_specs import RunSpec

NO_DROPOUT = "this backend has no dropout; set it to 0"

LIMITS = (
    *SINGLE_DEVICE,
    *LANGUAGE_MODELING_ONLY,
    Limit("model.hidden_dropout_prob", lambda spec, _: spec.model.hidden_dropout_prob > 0, NO_DROPOUT),
    Limit(
        "model.attention_probs_dropout_prob",
        lambda spec, _: spec.model.attention_probs_dropout_prob > 0,
        NO_DROPOUT,
    ),
    Limit(
        "precision.compute",
        lambda spec, _: spec.precision.compute != "fp32",
        "this backend computes in one precision and calls it fp32",
    ),
    Limit(
        "training.recompute",
        lambda spec, _: spec.training.recompute != "none",
        "this backend keeps every activation",
    ),
    Limit("training.compile", lambda spec, _: spec.training.compile, "NumPy has no compiler"),
)


@hookimpl
def gptbridge_backend_info() -> BackendInfo:
    """Describe the backend."""
    return BackendInfo(
        name="numpy",
        title="NumPy",
        requires=("numpy>=1.24",),
        # No module here excludes another framework from the process: gptbridge itself uses NumPy.
        modules=(),
        hardware=("cpu",),
        install="pip install gptbridge-numpy",
    )


@hookimpl
def gptbridge_check(spec: RunSpec, device: DeviceKind | None) -> Sequence[Problem]:
    """Return what in `spec` this backend cannot honour."""
    return problems(LIMITS, spec, device)


@hookimpl
def gptbridge_probe() -> Mapping[str, Any]:
    """Name the version of NumPy and the only device."""
    import numpy

    return {"version": numpy.__version__, "devices": ["cpu"]}


@hookimpl
def gptbridge_setup_hardware(spec: RunSpec) -> Device:
    """Return the CPU: it needs no preparation."""
    from gptbridge.session import Device

    return Device("cpu", "NumPy on CPU", None)


@hookimpl
def gptbridge_open_model(spec: RunSpec) -> LanguageModel:
    """Build the model, to be read."""
    from gptbridge_numpy.session import NumpyModel

    return NumpyModel(spec)


@hookimpl
def gptbridge_open_trainer(spec: RunSpec) -> Trainer:
    """Build model and optimizer."""
    from gptbridge_numpy.session import NumpyTrainer

    return NumpyTrainer(spec)
