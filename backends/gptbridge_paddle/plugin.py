"""The hooks of the Paddle backend. Paddle is imported inside the worker hooks alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptbridge.hookspecs import BackendInfo, Launch, MemoryUse, Problem, hookimpl
from gptbridge.plugins.capabilities import WHOLE_TASKS, Limit, problems
from gptbridge_paddle import parallel

if TYPE_CHECKING:
    from gptbridge.process.world import World
    from gptbridge.session import Device, DeviceKind, LanguageModel, Trainer
    from gptbridge.weights.layouts.arrays import Read
    from gptbridge_specs import RunSpec

# Measured by benchmarks/memory.py. On a CPU attention keeps q, k and v by head, and its probabilities.
MEMORY = MemoryUse(
    core={"m g d": 1, "m d": 2, "m g t": 1},
    core_dropped={"m g t": 1.25},
    block_dropped={"i": 0.5},
    working=0.65,
    logits=2**22,
    waste=1.4,
)

INFO = BackendInfo(
    name="paddle",
    title="PaddlePaddle",
    requires=("paddlepaddle>=3.0",),
    modules=("paddle",),
    hardware=("cpu", "gpu"),
    install="pip install -e '.[paddle]' (in a checkout of gptbridge)",
    memory={"cpu": MEMORY},
)

_LARGEST_EPSILON = 0.001

LIMITS = (
    *WHOLE_TASKS,
    Limit(
        "precision.compute",
        lambda spec, device: spec.precision.compute != "fp32" and device == "cpu",
        "bf16 and fp16 need a GPU: on a CPU Paddle has no kernels for them, and its automatic mixed "
        "precision would silently compute in fp32; use fp32",
    ),
    Limit(
        "model.layernorm_epsilon",
        lambda spec, _: spec.model.layernorm_epsilon > _LARGEST_EPSILON,
        f"Paddle's kernel takes at most {_LARGEST_EPSILON}",
    ),
    Limit(
        "training.compile",
        lambda spec, _: spec.training.compile,
        "this backend runs eagerly: paddle.jit.to_static makes its CPU steps slower and their memory twice "
        "as large",
    ),
)


@hookimpl
def gptbridge_backend_info() -> BackendInfo:
    """Describe the backend."""
    return INFO


@hookimpl
def gptbridge_check(spec: RunSpec, device: DeviceKind | None) -> Sequence[Problem]:
    """Return what the tables say that Paddle cannot do."""
    return problems(LIMITS, spec, device)


@hookimpl
def gptbridge_probe() -> Mapping[str, Any]:
    """Import Paddle and name its version and devices."""
    from gptbridge_paddle import hardware

    return hardware.probe()


@hookimpl
def gptbridge_setup_hardware(spec: RunSpec) -> Device | None:
    """Prepare the process, import Paddle and pick the device."""
    from gptbridge_paddle import hardware

    return hardware.setup(spec.training.device, keep_memory=spec.training.recompute == "none")


@hookimpl
def gptbridge_launch_command(launch: Launch, command: Sequence[str]) -> Sequence[str]:
    """Return paddle.distributed.launch around `command`."""
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
    from gptbridge_paddle.session import PaddleModel

    return PaddleModel(spec, device, world)


@hookimpl
def gptbridge_export(spec: RunSpec, device: Device, format: str, read: Read, folder: Path) -> list[str]:
    """Write the model for other software."""
    from gptbridge_paddle.export import export

    return export(spec, device, read, folder)


@hookimpl
def gptbridge_open_trainer(spec: RunSpec, device: Device, world: World) -> Trainer:
    """Build model and optimizer on `device`."""
    from gptbridge_paddle.session import PaddleTrainer

    return PaddleTrainer(spec, device, world)
