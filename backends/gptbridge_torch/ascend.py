"""Huawei Ascend through torch_npu: a hardware plugin of its own. Not run on a device so far."""

from __future__ import annotations

import importlib

from gptbridge.errors import UsageError
from gptbridge.hookspecs import hookimpl
from gptbridge.session import Device
from gptbridge_specs import RunSpec
from gptbridge_torch.hardware import import_torch, make_deterministic


@hookimpl
def gptbridge_setup_hardware(spec: RunSpec) -> Device | None:
    """Pick Ascend when the spec asks for it, or for auto where one is here; None leaves it to others."""
    if spec.training.device not in ("auto", "ascend"):
        return None
    torch = import_torch()
    reason = _load_torch_npu()
    if reason is None and torch.npu.is_available():
        make_deterministic()
        handle = torch.device("npu", 0)
        return Device("ascend", torch.npu.get_device_name(handle), handle)
    if spec.training.device == "auto":
        return None
    raise UsageError(
        f"torch {torch.__version__} has no Ascend device: {reason or 'torch_npu sees none'}",
        where="training.device",
        allowed="cpu, gpu, auto",
        hint="Install CANN and torch_npu for this version of torch, or choose another device.",
    )


def _load_torch_npu() -> str | None:
    """Import torch_npu, which adds the device to torch; return why it cannot be, None when it is."""
    try:
        importlib.import_module("torch_npu")
    except (ImportError, RuntimeError) as error:  # its wheel installs, and then misses CANN's libraries
        return str(error)
    return None
