"""The hooks of the Paddle backend. Paddle is imported inside the worker hooks alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptbridge.capabilities import LANGUAGE_MODELING_ONLY, Limit, problems
from gptbridge.hookspecs import BackendInfo, Problem, hookimpl
from gptbridge_paddle import parallel

if TYPE_CHECKING:
    from gptbridge.session import Device, DeviceKind, Session
    from gptbridge_specs import RunSpec

LIMITS = (
    *parallel.LIMITS,
    *LANGUAGE_MODELING_ONLY,
    Limit(
        "precision.compute",
        lambda spec, device: device == "cpu" and spec.precision.compute != "fp32",
        "Paddle computes in fp32 alone on CPU: it has no bf16 or fp16 kernels there, and its "
        "automatic mixed precision would silently stay in fp32",
    ),
)


@hookimpl
def gptbridge_backend_info() -> BackendInfo:
    """Describe the backend."""
    return BackendInfo(
        name="paddle",
        title="PaddlePaddle",
        requires=("paddlepaddle>=3.0",),
        modules=("paddle",),
        hardware=("cpu", "gpu"),
        install="pip install 'gptbridge[paddle]'",
    )


@hookimpl
def gptbridge_check(spec: RunSpec, device: DeviceKind | None) -> Sequence[Problem]:
    """Return what in `spec` Paddle cannot honour on `device`."""
    return problems(LIMITS, spec, device)


@hookimpl
def gptbridge_probe() -> Mapping[str, Any]:
    """Import Paddle and name its version and devices."""
    from gptbridge_paddle import hardware

    return {"version": hardware.import_paddle().__version__, "devices": hardware.devices()}


@hookimpl
def gptbridge_setup_hardware(spec: RunSpec) -> Device:
    """Prepare the process, import Paddle and pick the device."""
    from gptbridge_paddle import hardware

    return hardware.setup(spec)


@hookimpl
def gptbridge_open_session(spec: RunSpec, device: Device) -> Session:
    """Build model and optimizer on `device`."""
    from gptbridge_paddle.session import PaddleSession

    return PaddleSession(spec, device)
