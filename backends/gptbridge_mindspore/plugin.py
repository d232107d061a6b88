"""The hooks of the MindSpore backend. Nothing here imports mindspore until a worker hook runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptbridge.hookspecs import BackendInfo, Launch, MemoryUse, Problem, hookimpl
from gptbridge.plugins.capabilities import WHOLE_TASKS, Limit, problems
from gptbridge_mindspore import parallel

if TYPE_CHECKING:
    from gptbridge.process.world import World
    from gptbridge.session import Device, DeviceKind, LanguageModel, Trainer
    from gptbridge.weights.layouts.arrays import Read
    from gptbridge_specs import RunSpec

# Measured by benchmarks/memory.py.
MEMORY = MemoryUse(
    process=530 << 20,  # 490 to 590, by how much of the libraries the kernel maps at once
    per_layer=49 << 20,
    core={"m g d": 1, "m d": 2, "m g t": 1.2},
    attention={"m g d": 4.6},
    core_dropped={"m g t": 2},
    block={"f": 2.55},
    working=2.2,
    head=8.2,
    logits=0,
    waste=1.0,
)

INFO = BackendInfo(
    name="mindspore",
    title="MindSpore",
    requires=("mindspore>=2.5",),
    modules=("mindspore",),
    hardware=("cpu", "ascend"),
    install="pip install -e '.[mindspore]' (in a checkout of gptbridge)",
    memory={"cpu": MEMORY},
)

# training.compile is not here: this backend compiles its model always, asked or not.
LIMITS = (
    *WHOLE_TASKS,
    Limit(
        "training.seq_length",
        lambda spec, device: (
            device == "ascend"
            and spec.training.seq_length % 8 > 0
            and spec.model.attention_probs_dropout_prob > 0
            and spec.precision.compute != "fp32"
        ),
        "Ascend's fused attention drops bits by bytes: with dropout of attention in half precision the "
        "length must be a multiple of 8",
    ),
    Limit(
        "task.records.packed",
        lambda spec, device: (
            device == "ascend" and spec.task.records.packed and spec.precision.compute != "fp32"
        ),
        "Ascend's fused attention, which half precision takes, sees all earlier tokens of a row",
    ),
    Limit(
        "precision.compute",
        lambda spec, device: spec.precision.compute == "bf16" and device == "cpu",
        "MindSpore has no bf16 kernels for a CPU, not even a matrix product; use fp32",
    ),
    Limit(
        "precision.compute",
        lambda spec, device: spec.precision.compute == "fp16" and device == "cpu",
        "MindSpore's fp16 kernels for a CPU are slower than its fp32 ones; use fp32",
    ),
)


@hookimpl
def gptbridge_backend_info() -> BackendInfo:
    """Describe the backend."""
    return INFO


@hookimpl
def gptbridge_check(spec: RunSpec, device: DeviceKind | None) -> Sequence[Problem]:
    """Return what the tables say that MindSpore cannot do."""
    return problems(LIMITS, spec, device)


@hookimpl
def gptbridge_probe() -> Mapping[str, Any]:
    """Import MindSpore and name its version and devices."""
    from gptbridge_mindspore import hardware

    return hardware.probe()


@hookimpl
def gptbridge_setup_hardware(spec: RunSpec) -> Device | None:
    """Prepare the process and pick the device."""
    from gptbridge_mindspore import hardware

    return hardware.setup(spec.training.device)


@hookimpl
def gptbridge_launch_command(launch: Launch, command: Sequence[str]) -> Sequence[str]:
    """Return msrun around `command`."""
    return parallel.launch_command(launch, command)


@hookimpl
def gptbridge_join(spec: RunSpec, device: Device) -> World | None:
    """Meet the other ranks."""
    return parallel.join(spec, device)


@hookimpl
def gptbridge_rank() -> int | None:
    """Return the rank of this process."""
    return parallel.rank()


@hookimpl
def gptbridge_open_model(spec: RunSpec, device: Device, world: World) -> LanguageModel:
    """Build the model on `device`, to be read."""
    if parallel.by_pieces(spec.parallel):
        from gptbridge_mindspore.stages import StagedModel

        return StagedModel(spec, device, world)
    from gptbridge_mindspore.session import MindSporeModel

    return MindSporeModel(spec, device, world)


@hookimpl
def gptbridge_export(spec: RunSpec, device: Device, format: str, read: Read, folder: Path) -> list[str]:
    """Write the model for other software."""
    from gptbridge_mindspore.export import export

    return export(spec, device, read, folder)


@hookimpl
def gptbridge_open_trainer(spec: RunSpec, device: Device, world: World) -> Trainer:
    """Build model and optimizer on `device`."""
    if parallel.by_pieces(spec.parallel):
        from gptbridge_mindspore.stages import StagedTrainer

        return StagedTrainer(spec, device, world)
    from gptbridge_mindspore.session import MindSporeTrainer

    return MindSporeTrainer(spec, device, world)
