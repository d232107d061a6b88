"""Huawei Ascend through Paddle's npu custom device: a hardware plugin of its own."""

from __future__ import annotations

from gptbridge.errors import UsageError
from gptbridge.hookspecs import hookimpl
from gptbridge.session import Device
from gptbridge_paddle.hardware import import_paddle
from gptbridge_specs import RunSpec

CUSTOM_DEVICE = "npu"  # the name under which paddle-custom-npu registers Ascend


@hookimpl
def gptbridge_setup_hardware(spec: RunSpec) -> Device | None:
    """Pick Ascend when the spec asks for it, or for auto where one is here; None leaves it to others."""
    if spec.training.device not in ("auto", "ascend"):
        return None
    paddle = import_paddle()
    if CUSTOM_DEVICE in paddle.device.get_all_custom_device_type():
        paddle.device.set_device(f"{CUSTOM_DEVICE}:0")
        return Device("ascend", "Ascend NPU 0", paddle.CustomPlace(CUSTOM_DEVICE, 0))
    if spec.training.device == "auto":
        return None
    raise UsageError(
        f"paddle {paddle.__version__} has no {CUSTOM_DEVICE} device: paddle-custom-npu or CANN is missing",
        where="training.device",
        allowed="cpu, gpu, auto",
        hint="Install CANN and paddle-custom-npu for this version of paddle, or choose another device.",
    )
