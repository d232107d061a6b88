"""Where Paddle computes: environment, import, device, determinism."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from pathlib import Path
from typing import Any

from gptbridge.errors import UsageError
from gptbridge.process.allocator import keep_freed_memory
from gptbridge.process.cores import usable_cores
from gptbridge.session import Device

ENVIRONMENT = {
    "GLOG_minloglevel": "2",  # errors alone
    # The same bits from the same run on GPU too.
    "FLAGS_cudnn_deterministic": "1",
    "FLAGS_embedding_deterministic": "1",
}


def prepare_environment() -> None:
    """Set what Paddle reads at its import; what the user has set stays."""
    threads = {"OMP_NUM_THREADS": str(usable_cores())}  # Paddle's own default is one
    # Its old MKL takes the slowest path on AMD unless told that AVX2 is there: half the speed.
    mkl = {"MKL_DEBUG_CPU_TYPE": "5"} if cpu_vendor() == "AuthenticAMD" else {}
    for name, value in {**ENVIRONMENT, **threads, **mkl}.items():
        os.environ.setdefault(name, value)


def import_paddle() -> Any:
    """Prepare the process, import Paddle without its advice on ccache and threads, and return it."""
    prepare_environment()
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        import paddle
    # Paddle's handlers would print a C++ stack and end the process where a run is to save first.
    paddle.disable_signal_handler()
    return paddle


def probe() -> dict[str, Any]:
    """Return Paddle's version and the devices it sees."""
    paddle = import_paddle()
    gpus = [paddle.device.cuda.get_device_name(n) for n in range(_gpus(paddle))]
    return {"version": paddle.__version__, "devices": ["cpu", *gpus]}


def setup(wanted: str, *, keep_memory: bool = True) -> Device | None:
    """Return the device for `wanted` (auto, cpu or gpu), None for one that a hardware plugin adds.

    Raises UsageError when a GPU is asked for and there is none.
    """
    if wanted not in ("auto", "cpu", "gpu"):
        return None
    paddle = import_paddle()
    if _gpus(paddle) and wanted != "cpu":
        number = paddle.distributed.ParallelEnv().device_id  # the launcher's choice, else 0
        paddle.device.set_device(f"gpu:{number}")
        return Device("gpu", paddle.device.cuda.get_device_name(number), paddle.CUDAPlace(number))
    if wanted == "gpu":
        raise UsageError(
            "paddle sees no GPU",
            where="training.device",
            allowed="cpu, auto",
            hint="`gptbridge backends --probe` lists the devices; GPUs need the package paddlepaddle-gpu.",
        )
    keep_freed_memory(keep_memory)
    paddle.device.set_device("cpu")
    return Device("cpu", f"CPU, {os.environ['OMP_NUM_THREADS']} threads", paddle.CPUPlace())


def cpu_vendor() -> str:
    """Return the CPU's vendor as Linux reports it, empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("vendor_id")), "")


def _gpus(paddle: Any) -> int:
    return int(paddle.device.cuda.device_count()) if paddle.device.is_compiled_with_cuda() else 0
