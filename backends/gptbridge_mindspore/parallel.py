"""Parallel layouts of the MindSpore backend: what it refuses, how ranks are started, how they meet."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptbridge.errors import UsageError
from gptbridge.hookspecs import Launch
from gptbridge.plugins.capabilities import SINGLE_DEVICE, Limit
from gptbridge.process.place import DIMENSIONS, REPLICAS, Place
from gptbridge.process.world import World
from gptbridge.weights.architecture import sizes, tensor_slice, weight_axes

if TYPE_CHECKING:
    from gptbridge.session import Device
    from gptbridge_mindspore.collectives import Group
    from gptbridge_specs import ModelSpec, RunSpec

CUT_SO_FAR = ("parallel.data", "parallel.tensor", "parallel.sequence")
LIMITS = (
    *(
        limit
        for limit in SINGLE_DEVICE
        if limit.field.removeprefix("parallel.") in ("pipeline", "sharding", "sharding_stage")
    ),
    Limit(
        "training.seq_length",
        lambda spec, _: spec.parallel.sequence and spec.training.seq_length % spec.parallel.tensor > 0,
        "sequences are cut into equal parts: with parallel.sequence the length must be a multiple of "
        "parallel.tensor",
    ),
)


@dataclass(frozen=True, slots=True)
class Groups:
    """The ranks that a rank works with; None where it would be alone."""

    all: Group | None = None
    replicas: Group | None = None  # they see different samples
    tensor: Group | None = None  # they share each matrix


@dataclass(frozen=True, slots=True)
class Cut:
    """What tensor parallelism leaves this rank of a model, and the ranks that have the rest."""

    heads: range
    ffn: range
    words: range
    group: Group | None = None
    sequence: bool = False  # between its parts, a rank has some tokens of each sample

    def tokens(self, length: int) -> slice:
        """Return which of `length` tokens this rank has between its parts."""
        if self.group is None or not self.sequence:
            return slice(0, length)
        size = length // self.group.size
        return slice(self.group.index * size, (self.group.index + 1) * size)


def cut_of(model: ModelSpec, place: Place, groups: Groups, *, sequence: bool = False) -> Cut:
    """Return what the rank at `place` has of the letters that the architecture table cuts."""
    rank, degree, whole = place.index("tensor"), place.degree("tensor"), sizes(model)
    boxes = (tensor_slice(weight_axes(name), whole, rank, degree) for name in CUT_ALIKE)
    heads, ffn, words = (range(*box[letter]) for box, letter in zip(boxes, CUT_ALIKE.values(), strict=True))
    return Cut(heads, ffn, words, groups.tensor, sequence)


# A weight that is cut along each letter, as all others of the letter are.
CUT_ALIKE = {"attn.q.weight": "m", "mlp.c_fc.weight": "f", "wte.weight": "v"}


def launch_command(launch: Launch, command: Sequence[str]) -> list[str]:
    """Return msrun around `command`: it takes any program for a script of the `python` on the PATH."""
    options = {
        "worker_num": launch.processes * launch.nodes,
        "local_worker_num": launch.processes,
        "node_rank": launch.node_rank,
        "master_addr": launch.master,
        "master_port": launch.port,
        "log_dir": launch.logs,
        "join": True,
    }
    msrun = [sys.executable, "-m", "mindspore.parallel.cluster.run"]
    return [*msrun, *(f"--{name}={value}" for name, value in options.items()), "python", *command[1:]]


def join(spec: RunSpec, device: Device) -> World | None:
    """Meet the other ranks of `spec.parallel`, which msrun has started; None for a layout of one.

    UsageError where it has started another number of them.
    """
    ranks, started = spec.parallel.world_size, int(os.environ.get("MS_WORKER_NUM", "1"))
    if ranks != started:
        raise UsageError(
            f"this layout has {ranks} ranks, and {started} were started",
            where="parallel",
            hint=f"Start it with `gptbridge train --devices {ranks}`.",
        )
    if ranks == 1:
        return None
    from mindspore.communication import get_rank, init

    from gptbridge_mindspore.collectives import group_of, total

    init()
    place = Place(spec.parallel, get_rank())

    def group(ranks: list[list[int]]) -> Group | None:
        mine = next(tuple(group) for group in ranks if place.rank in group)
        return group_of(mine, place.rank, native=device.kind == "ascend") if len(mine) > 1 else None

    groups = Groups(
        all=group(place.groups(*DIMENSIONS)),
        replicas=group(place.groups(*REPLICAS)),
        tensor=group(place.groups("tensor")),
    )
    total([0.0], groups.all)
    for number in (signal.SIGINT, signal.SIGTERM):  # MindSpore's first collective takes them from Python
        signal.signal(number, signal.getsignal(number))

    def barrier() -> None:
        total([0.0], groups.all)

    return World(
        place,
        total=lambda values: total(values, groups.replicas),
        any=lambda flag: total([flag], groups.all) != [0.0],
        barrier=barrier,
        handle=groups,
    )
