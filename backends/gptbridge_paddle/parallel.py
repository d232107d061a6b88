"""Parallel layouts of the Paddle backend: what it refuses, how ranks are started, how they meet."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from gptbridge.hookspecs import Launch
from gptbridge.process import groups
from gptbridge.process.place import Place
from gptbridge.process.world import World, has_others

if TYPE_CHECKING:
    from gptbridge.session import Device
    from gptbridge_paddle.groups import Group
    from gptbridge_specs import RunSpec


@dataclass(frozen=True, slots=True)
class Groups(groups.Groups["Group"]):
    """With the pairs of stages, by what they pass."""

    onward: Group | None = None  # activations to the next stage,
    incoming: Group | None = None  # from the one before,
    back: Group | None = None  # gradients to the one before
    returning: Group | None = None  # and from the next


def rank() -> int | None:
    """Return which rank paddle.distributed.launch has made this process."""
    return int(os.environ["PADDLE_TRAINER_ID"]) if "PADDLE_TRAINER_ID" in os.environ else None


def launch_command(launch: Launch, command: Sequence[str]) -> list[str]:
    """Return paddle.distributed.launch around `command`."""
    # It serves where it finds its own number in --master; by a name, all machines would wait for each other.
    host = "127.0.0.1" if launch.node_rank == 0 else launch.master
    options = {
        "nnodes": launch.nodes,
        "rank": launch.node_rank,
        "nproc_per_node": launch.processes,
        "master": f"{host}:{launch.port}",
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
    if not has_others(spec.parallel, started=int(os.environ.get("PADDLE_TRAINERS_NUM", "1"))):
        return None
    import paddle
    import paddle.distributed as dist

    from gptbridge_paddle.collectives import MAX, SUM, all_reduce, meet

    if not dist.is_initialized():
        os.environ["PADDLE_DISTRI_BACKEND"] = "gloo" if device.kind == "cpu" else "auto"
        dist.init_parallel_env()
    place = Place(spec.parallel, dist.get_rank())
    own = _groups(place)

    def reduce(values: Sequence[float], operation: int, group: Group | None) -> list[float]:
        meet(group)
        numbers: list[float] = all_reduce(paddle.to_tensor(values, "float64"), group, operation).tolist()
        return numbers

    return World(
        place,
        total=lambda values: reduce(values, SUM, own.replicas),
        any=lambda flag: bool(reduce([flag], MAX, own.all)[0]),
        barrier=partial(meet, own.all),
        handle=own,
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
    return Groups.of(place, group_of, **passing)


def _pairs(chain: Sequence[int], place: Place) -> list[tuple[int, int]]:
    """Return each stage of a pipeline with the next; with virtual stages the first comes after the last."""
    pairs = list(pairwise(chain))
    return [*pairs, (chain[-1], chain[0])] if place.parallel.virtual_pipeline > 1 else pairs
