"""The hooks that a plugin implements: this module is the whole plugin API.

It imports no framework, and neither may the module that an entry point names: a backend imports
its framework inside the hooks marked "worker", which run where the model runs.

A backend is an entry point in the group `gptbridge.backends` (`mine = "gptbridge_mine.plugin"`).
A hardware plugin is one in `gptbridge.hardware`, named `BACKEND:DEVICE` (`torch:ascend`); it
implements `gptbridge_setup_hardware` alone and answers before the backend does, or returns None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from gptbridge.process.world import World
    from gptbridge.session import Device, DeviceKind, LanguageModel, Trainer
    from gptbridge.weights.layouts.arrays import Read
    from gptbridge_specs import RunSpec

hookspec = pluggy.HookspecMarker("gptbridge")
hookimpl = pluggy.HookimplMarker("gptbridge")

API_VERSION = 2  # raised when a hook or a protocol of gptbridge.session changes so that plugins break


# How many arrays are kept of each shape that one token has, in the letters of gptbridge.weights.layouts.axes:
# "i" as wide as the stream, "f" as the feed-forward layer, "m g t" a score for each head and earlier token.
Kept = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """What a backend holds on one kind of device beside weights, gradients and moments.

    gptbridge.plan estimates a run with it. `core`, `attention` and `block` are what a layer keeps for its
    backward pass, beside its input: within the attention core, in the rest of the attention branch, and in
    the rest of the layer; the recompute levels forget them in this order. `dropped` are added to them
    where there is dropout.
    """

    process: int = 350 << 20  # bytes of a process with the framework loaded
    recomputing: int = 0  # bytes more of it where layers are recomputed, such as a compiler
    per_layer: int = 0  # bytes of what describes a layer, such as a compiled graph
    core: Kept = field(default_factory=dict)
    attention: Kept = field(default_factory=lambda: {"m g d": 2, "m d": 2})
    block: Kept = field(default_factory=lambda: {"i": 3, "f": 2})
    core_dropped: Kept = field(default_factory=dict)
    block_dropped: Kept = field(default_factory=lambda: {"i": 1})
    working: float = 0.7  # the gradients within a layer, as a share of all that it can keep
    head: float = 3.0  # copies of the head's matrix while the loss is computed
    logits: int = 2**23  # logits alive at once
    waste: float = 1.2  # memory held over memory in use where nothing is recomputed


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendInfo:
    """What `gptbridge backends` shows, and what the core must know before it imports a framework."""

    name: str
    title: str
    requires: tuple[str, ...]  # PEP 508, such as "paddlepaddle>=3.0"
    modules: tuple[str, ...]  # import names of the framework: one framework per process
    hardware: tuple[str, ...]  # from "cpu", "gpu", "ascend"
    install: str  # the command that makes a missing backend work
    memory: Mapping[DeviceKind, MemoryUse] = field(default_factory=dict)  # a kind without one: as by default
    api_version: int = API_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """The ranks that one machine starts, as a launcher must know it; all ranks meet at `master`:`port`."""

    processes: int  # on this machine
    logs: Path  # a folder for what the ranks print
    port: int
    master: str = "127.0.0.1"
    nodes: int = 1
    node_rank: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing in a spec that a backend cannot do."""

    field: str  # "parallel.tensor"
    reason: str


@hookspec(firstresult=True)
def gptbridge_backend_info() -> BackendInfo | None:
    """Describe the backend. No framework is imported."""


@hookspec
def gptbridge_check(spec: RunSpec, device: DeviceKind | None) -> Sequence[Problem] | None:
    """Return everything in `spec` that the backend cannot honour. No framework is imported.

    Called before launch with the device that the spec names (None for auto), and again
    when the device is known.
    """


@hookspec(firstresult=True)
def gptbridge_probe() -> Mapping[str, Any] | None:
    """Worker: import the framework; return {"version": str, "devices": [str, ...]}."""


@hookspec(firstresult=True)
def gptbridge_setup_hardware(spec: RunSpec) -> Device | None:
    """Worker: prepare the process for `spec.training.device`, import the framework, pick the device."""


@hookspec(firstresult=True)
def gptbridge_launch_command(launch: Launch, command: Sequence[str]) -> Sequence[str] | None:
    """Return the framework's own launcher around `command`, this Python and its arguments, for every rank.

    No framework is imported. The launcher starts with the folder of this Python first on its PATH.
    """


@hookspec(firstresult=True)
def gptbridge_rank() -> int | None:
    """Worker: return which rank the launcher has made this process; None: it does not say, or this is none.

    No framework is imported.
    """


@hookspec(firstresult=True)
def gptbridge_join(spec: RunSpec, device: Device) -> World | None:
    """Worker: meet the other ranks of `spec.parallel`; without an answer this process is the only one.

    What the launcher left in the environment says which rank this is. May be called again for another
    layout of the same ranks.
    """


@hookspec(firstresult=True)
def gptbridge_open_model(spec: RunSpec, device: Device, world: World) -> LanguageModel | None:
    """Worker: build the model of `spec` on `device` to be read, its weights in the type it computes in.

    Weights are undefined until they are written.
    """


@hookspec(firstresult=True)
def gptbridge_open_trainer(spec: RunSpec, device: Device, world: World) -> Trainer | None:
    """Worker: build model and optimizer on `device`. Weights are undefined until they are written."""


@hookspec(firstresult=True)
def gptbridge_export(
    spec: RunSpec, device: Device, format: str, read: Read, folder: Path
) -> list[str] | None:
    """Worker: write the model of `spec`, its weights as `read(name, box)` has them, into `folder`.

    `format` is one that gptbridge.exporting.formats says this backend writes. No path of this machine may be
    in the files, whose names are returned.
    """


@hookspec
def gptbridge_event(event: Mapping[str, Any]) -> None:
    """Receive each event of a run as it is written to events.jsonl."""
