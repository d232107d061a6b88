"""The hooks of the torch backend. Nothing here imports torch until a worker hook runs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptbridge.hookspecs import BackendInfo, Launch, MemoryUse, Problem, hookimpl
from gptbridge.plugins.capabilities import WHOLE_TASKS, Limit, problems
from gptbridge_torch import parallel

if TYPE_CHECKING:
    from gptbridge.process.world import World
    from gptbridge.session import Device, DeviceKind, LanguageModel, Trainer
    from gptbridge.weights.layouts.arrays import Read
    from gptbridge_specs import RunSpec

# Measured by benchmarks/memory.py. Attention with dropout is computed in steps on a CPU, each of them kept.
MEMORY = MemoryUse(
    process=330 << 20,  # 280 to 360, by how much of the libraries the kernel maps at once
    recomputing=70 << 20,  # its checkpoint imports the compiler
    core_dropped={"m g t": 2, "m g d": 1, "m d": 1},
    block_dropped={"i": 2},
    working=0.45,
    logits=2**22,
    waste=1.25,
)

INFO = BackendInfo(
    name="torch",
    title="PyTorch",
    requires=("torch>=2.6",),
    modules=("torch",),
    hardware=("cpu", "gpu"),
    install="pip install -e '.[torch]' (in a checkout of gptbridge)",
    memory={"cpu": MEMORY},
)

LIMITS = (
    *parallel.LIMITS,
    *WHOLE_TASKS,
    Limit(
        "training.compile",
        lambda spec, _: spec.training.compile and not shutil.which(os.environ.get("CXX", "g++")),
        "torch.compile needs a C++ compiler, and neither g++ nor what CXX names is found",
    ),
)


@hookimpl
def gptbridge_backend_info() -> BackendInfo:
    """Describe the backend."""
    return INFO


@hookimpl
def gptbridge_check(spec: RunSpec, device: DeviceKind | None) -> Sequence[Problem]:
    """Return what the tables say that torch cannot do."""
    return problems(LIMITS, spec, device)


@hookimpl
def gptbridge_probe() -> Mapping[str, Any]:
    """Import torch and name its version and devices."""
    from gptbridge_torch import hardware

    return hardware.probe()


@hookimpl
def gptbridge_setup_hardware(spec: RunSpec) -> Device | None:
    """Prepare the process and pick the device."""
    from gptbridge_torch import hardware

    return hardware.setup(spec.training.device, keep_memory=spec.training.recompute == "none")


@hookimpl
def gptbridge_launch_command(launch: Launch, command: Sequence[str]) -> Sequence[str]:
    """Return torchrun around `command`."""
    return parallel.launch_command(launch, command)


@hookimpl
def gptbridge_rank() -> int | None:
    """Return the rank of this process."""
    return parallel.rank()


@hookimpl
def gptbridge_join(spec: RunSpec, device: Device) -> World | None:
    """Meet the other ranks."""
    return parallel.join(spec, device)


@hookimpl
def gptbridge_open_model(spec: RunSpec, device: Device, world: World) -> LanguageModel:
    """Build the model on `device`, to be read."""
    from gptbridge_torch.session import TorchModel

    return TorchModel(spec, device, world)


@hookimpl
def gptbridge_export(spec: RunSpec, device: Device, format: str, read: Read, folder: Path) -> list[str]:
    """Write the model for other software."""
    from gptbridge_torch.export import export

    return export(spec, device, format, read, folder)


@hookimpl
def gptbridge_open_trainer(spec: RunSpec, device: Device, world: World) -> Trainer:
    """Build model and optimizer on `device`."""
    from gptbridge_torch.session import TorchTrainer

    return TorchTrainer(spec, device, world)
