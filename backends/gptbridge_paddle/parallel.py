"""Parallel layouts of the Paddle backend: what it refuses, how ranks are started, how they meet."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from gptbridge.errors import UsageError
from gptbridge.hookspecs import Launch
from gptbridge.plugins.capabilities import MANY_DEVICES
from gptbridge.process.place import REPLICAS, Place
from gptbridge.process.world import World

if TYPE_CHECKING:
    from gptbridge.session import Device
    from gptbridge_paddle.groups import Group
    from gptbridge_specs import RunSpec


LIMITS = MANY_DEVICES


@dataclass(frozen=True, slots=True)
class Groups:
    """The ranks that a rank works with; None where it would be alone."""

    all: Group | None = None
    replicas: Group | None = None  # they see different samples
    losses: Group | None = None  # each has its own part of the loss, or none of it
    data: Group | None = None
    sharding: Group | None = None
    tensor: Group | None = None
    pipeline: Group | None = None
    ends: Group | None = None  # a first and a last stage
    onward: Group | None = None  # pairs of stages, by what they pass: activations to the next stage,
    incoming: Group | None = None  # from the one before,
    back: Group | None = None  # gradients to the one before
    returning: Group | None = None  # and from the next


def rank() -> int | None:
    """Return which rank paddle.distributed.launch has made this process."""
    return int(os.environ["PADDLE_TRAINER_ID"]) if "PADDLE_TRAINER_ID" in os.environ else None


def launch_command(launch: Launch, command: Sequence[str]) -> list[str]:
    """Return paddle.distributed.launch around `command`."""
    options = {
        "nnodes": launch.nodes,
        "rank": launch.node_rank,
        "nproc_per_node": launch.processes,
        "master": f"{launch.master}:{launch.port}",
        "log_dir": launch.logs,
        "log_level": "ERROR",
    }
    launcher = [sys.executable, "-m", "paddle.distributed.launch"]
    return [
        *launcher,
        *(word for name, value in options.items() for word in (f"--{name}", str(value))),
        *command,
    ]


def join(spec: RunSpec, device: Device) -> World | None:
    """Meet the other ranks of `spec.parallel`, which the launcher has started; None for a layout of one.

    UsageError where it has started another number of them.
    """
    ranks, started = spec.parallel.world_size, int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))
    if ranks != started:
        raise UsageError(
            f"this layout has {ranks} ranks, and {started} were started",
            where="parallel",
            hint=f"Start it with `gptbridge train --devices {ranks}`.",
        )
    if ranks == 1:
        return None
    import paddle
    import paddle.distributed as dist

    from gptbridge_paddle.collectives import MAX, SUM, all_reduce, meet

    if not dist.is_initialized():
        os.environ["PADDLE_DISTRI_BACKEND"] = "gloo" if device.kind == "cpu" else "auto"
        dist.init_parallel_env()
    place = Place(spec.parallel, dist.get_rank())
    groups = _groups(place)

    def reduce(values: Sequence[float], operation: int, group: Group | None) -> list[float]:
        meet(group)
        numbers: list[float] = all_reduce(paddle.to_tensor(values, "float64"), group, operation).tolist()
        return numbers

    return World(
        place,
        total=lambda values: reduce(values, SUM, groups.replicas),
        any=lambda flag: bool(reduce([flag], MAX, groups.all)[0]),
        barrier=groups.all.meet if groups.all else dist.barrier,
        handle=groups,
    )


def _groups(place: Place) -> Groups:
    """Return this rank's groups. Every rank makes all of them, in this order."""
    from gptbridge_paddle.groups import group_of

    pairs = [pair for chain in place.groups("pipeline") for pair in _pairs(chain, place)]
    passing: dict[str, Group | None] = dict.fromkeys(("onward", "incoming", "back", "returning"))
    for ahead, behind, kind in (("onward", "incoming", "activations"), ("returning", "back", "gradients")):
        for pair in pairs:
            group = group_of([pair], kind)
            if place.rank in pair:
                passing[ahead if place.rank == pair[0] else behind] = group
    return Groups(
        all=group_of(place.groups("pipeline", *REPLICAS, "tensor")),
        replicas=group_of(place.groups(*REPLICAS)),
        losses=group_of(place.groups("pipeline", *REPLICAS)),
        data=group_of(place.groups("data")),
        sharding=group_of(place.groups("sharding")),
        tensor=group_of(place.groups("tensor")),
        pipeline=group_of(place.groups("pipeline")),
        ends=group_of(place.ends()) if place.parallel.pipeline > 1 else None,
        **passing,
    )


def _pairs(chain: Sequence[int], place: Place) -> list[tuple[int, int]]:
    """Return each stage of a pipeline with the next; with virtual stages the first comes after the last."""
    pairs = list(pairwise(chain))
    return [*pairs, (chain[-1], chain[0])] if place.parallel.virtual_pipeline > 1 else pairs
