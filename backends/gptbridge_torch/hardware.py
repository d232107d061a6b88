"""Where torch computes: environment, device, determinism.

fp32 means fp32: torch's default (`float32_matmul_precision` "highest", no TF32) is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gptbridge.errors import UsageError
from gptbridge.process.allocator import keep_freed_memory
from gptbridge.process.cores import usable_cores
from gptbridge.session import Device

if TYPE_CHECKING:
    from torch import Tensor

ENVIRONMENT = {
    # A torch_npu wheel without its driver makes a plain `import torch` fail; ascend.py loads it by name.
    "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",
    # cuBLAS gives the same bits twice only with a fixed workspace.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}


def import_torch() -> Any:
    """Set what torch reads at its import, unless the user has; import torch and return it."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    import torch

    return torch


def probe() -> dict[str, Any]:
    """Return torch's version and the devices it sees."""
    torch = import_torch()
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {"version": torch.__version__, "devices": ["cpu", *gpus]}


def setup(wanted: str, *, keep_memory: bool = True) -> Device | None:
    """Return the device for `wanted` (auto, cpu or gpu), None for one that a hardware plugin adds.

    Raises UsageError when a GPU is asked for and there is none.
    """
    if wanted not in ("auto", "cpu", "gpu"):
        return None
    torch = import_torch()
    make_deterministic()
    if torch.cuda.is_available() and wanted != "cpu":
        handle = torch.device(
            "cuda", int(os.environ.get("LOCAL_RANK", "0"))
        )  # torchrun's number within a machine
        torch.cuda.set_device(handle)
        return Device("gpu", torch.cuda.get_device_name(handle), handle, torch.cuda.mem_get_info(handle)[0])
    if wanted == "gpu":
        raise UsageError(
            "torch sees no GPU",
            where="training.device",
            allowed="cpu, auto",
            hint="`gptbridge backends --probe` lists the devices.",
        )
    keep_freed_memory(keep_memory)
    # torch counts the machine's cores; threads beyond a container's quota only wait for each other.
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), usable_cores()))
    return Device("cpu", f"CPU, {torch.get_num_threads()} threads", torch.device("cpu"))


def make_deterministic() -> None:
    """Make torch repeat its bits, so that a resumed run equals the uninterrupted one."""
    import torch

    # What use_deterministic_algorithms does, but for the second that it takes to import the compiler.
    torch.set_deterministic_debug_mode("error")
    # Filling fresh memory finds reads of unwritten memory; it changes no result and costs a pass over it.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def read_back(values: Tensor) -> Callable[[], list[float]]:
    """Start to copy the 1-D `values` to the host; return a function that waits for them alone.

    Work that is queued after this call goes on while the host reads.
    """
    import torch

    if values.device.type == "cpu":
        return values.tolist
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
    copied = torch.Event(values.device)
    copied.record()

    def wait() -> list[float]:
        copied.synchronize()
        numbers: list[float] = host.tolist()
        return numbers

    return wait
