"""The process and the device that Paddle computes on."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptbridge.allocator import keep_freed_memory
from gptbridge.errors import UsageError
from gptbridge.session import Device, DeviceKind
from gptbridge_specs import RunSpec


def prepare_environment() -> None:
    """Set what Paddle reads from the environment when it is imported; what the user set stays."""
    # Paddle sets itself to one thread when nobody says otherwise.
    os.environ.setdefault("OMP_NUM_THREADS", str(usable_cores()))
    os.environ.setdefault("GLOG_minloglevel", "2")
    if _cpu_vendor() == "AuthenticAMD":
        # Paddle's old MKL takes its slowest path on AMD unless told that AVX2 is there: a factor of two.
        os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
    # The same bits from the same run, on GPU too.
    os.environ.setdefault("FLAGS_cudnn_deterministic", "1")
    os.environ.setdefault("FLAGS_embedding_deterministic", "1")


def import_paddle() -> Any:
    """Import Paddle in a prepared process, without its advice about ccache and OMP_NUM_THREADS."""
    prepare_environment()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        import paddle
    return paddle


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def devices() -> list[DeviceKind]:
    """Return the kinds of device that are here, the best first."""
    return [kind for kind, found in _FOUND.items() if found(import_paddle())]


def setup(spec: RunSpec) -> Device:
    """Prepare the process and pick the device; UsageError when the one asked for is not here."""
    paddle = import_paddle()
    found = devices()
    kind = found[0] if spec.training.device == "auto" else spec.training.device
    if kind not in found:
        raise UsageError(
            f"paddle {paddle.__version__} finds no {kind} on this machine",
            where=f"training.device={kind}",
            allowed=", ".join(["auto", *found]),
            hint=_INSTALL.get(kind),
        )
    return _OPEN[kind](paddle)


def _open_cpu(paddle: Any) -> Device:
    keep_freed_memory()
    paddle.device.set_device("cpu")
    return Device("cpu", f"cpu, {os.environ['OMP_NUM_THREADS']} threads", paddle.CPUPlace())


def _open_gpu(paddle: Any) -> Device:
    paddle.device.set_device("gpu:0")
    return Device("gpu", paddle.device.cuda.get_device_name(0), paddle.CUDAPlace(0))


def _has_gpu(paddle: Any) -> bool:
    return bool(paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0)


def _cpu_vendor() -> str:
    """Return the CPU's vendor as Linux reports it; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""
    lines = (line.partition(":") for line in text.splitlines() if line.startswith("vendor_id"))
    return next((value.strip() for _, _, value in lines), "")


_FOUND: dict[DeviceKind, Callable[[Any], bool]] = {"gpu": _has_gpu, "cpu": lambda _: True}
_OPEN: dict[DeviceKind, Callable[[Any], Device]] = {"gpu": _open_gpu, "cpu": _open_cpu}
_INSTALL = {"gpu": "Install paddlepaddle-gpu; paddlepaddle is built for CPU alone."}
