"""Where MindSpore computes: environment, device, determinism."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from typing import Any

from gptbridge.errors import UsageError
from gptbridge.session import Device

ENVIRONMENT = {
    # MindSpore logs advice and driver probing on the terminal; 4 leaves what is fatal.
    "GLOG_v": "4",
    # A graph that does not compile leaves a dump, by default in the working directory.
    "MS_OM_PATH": tempfile.gettempdir(),
}


def import_mindspore() -> Any:
    """Import MindSpore in a prepared process; what the user has set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import mindspore

    return mindspore


def probe() -> dict[str, Any]:
    """Return MindSpore's version and the devices it sees."""
    mindspore = import_mindspore()
    ascend = ["ascend"] if mindspore.device_context.ascend.is_available() else []
    return {"version": mindspore.__version__, "devices": ["cpu", *ascend]}


def setup(wanted: str) -> Device | None:
    """Return the device for `wanted`: auto, cpu or ascend; None for one that a hardware plugin adds.

    Raises UsageError when Ascend is asked for and there is none.
    """
    if wanted not in ("auto", "cpu", "ascend"):
        return None
    mindspore = import_mindspore()
    ascend = wanted != "cpu" and mindspore.device_context.ascend.is_available()
    if wanted == "ascend" and not ascend:
        raise UsageError(
            "mindspore sees no Ascend device",
            where="training.device",
            allowed="cpu, auto",
            hint="`gptbridge backends --probe` lists the devices.",
        )
    return _open_ascend() if ascend else _open_cpu()


@cache
def _open_cpu() -> Device:
    import_mindspore().set_device("CPU")
    return Device("cpu", "CPU", "CPU")


@cache
def _open_ascend() -> Device:
    mindspore = import_mindspore()
    mindspore.set_device("Ascend")
    mindspore.set_deterministic(True)  # may be called once in a process
    return Device("ascend", "Ascend", "Ascend")
