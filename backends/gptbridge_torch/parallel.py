"""Parallel layouts of the torch backend: what it refuses, how ranks are started, how they meet."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from gptbridge.errors import UsageError
from gptbridge.hookspecs import Launch
from gptbridge.plugins.capabilities import MANY_DEVICES, Limit
from gptbridge.process.place import REPLICAS, Place
from gptbridge.process.world import World

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from gptbridge.session import Device
    from gptbridge_specs import RunSpec


LIMITS = (
    *MANY_DEVICES,
    Limit(
        "training.compile",
        lambda spec, _: (
            spec.training.compile
            and (spec.parallel.tensor > 1 or spec.parallel.pipeline > 1)
            and (spec.model.hidden_dropout_prob > 0 or spec.model.attention_probs_dropout_prob > 0)
        ),
        "compiled dropout draws alike on all tensor ranks and for no one stage: set compile or dropout aside",
    ),
)


@dataclass(frozen=True, slots=True)
class Groups:
    """The ranks that a rank works with; None where it would be alone."""

    all: ProcessGroup | None = None
    tensor: ProcessGroup | None = None
    pipeline: ProcessGroup | None = None
    ends: ProcessGroup | None = None  # the first and last stage, which both have a tied embedding
    sharding: ProcessGroup | None = None
    data: ProcessGroup | None = None
    replicas: ProcessGroup | None = None  # they see different samples
    losses: ProcessGroup | None = None  # each has its own part of the loss, or none of it


def rank() -> int | None:
    """Return which rank torchrun has made this process."""
    return int(os.environ["RANK"]) if "RANK" in os.environ else None


def launch_command(launch: Launch, command: Sequence[str]) -> list[str]:
    """Return torchrun around `command`; it waits for no other command's ranks and restarts none."""
    options = {
        "nnodes": launch.nodes,
        "node-rank": launch.node_rank,
        "nproc-per-node": launch.processes,
        "master-addr": launch.master,
        "master-port": launch.port,
        "log-dir": launch.logs,
        "redirects": 3,
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--no-python"]
    return [*torchrun, *(f"--{name}={value}" for name, value in options.items()), *command]


def join(spec: RunSpec, device: Device) -> World | None:
    """Meet the other ranks of `spec.parallel`, which torchrun has started; None for a layout of one.

    UsageError where it has started another number of them.
    """
    ranks, started = spec.parallel.world_size, int(os.environ.get("WORLD_SIZE", "1"))
    if ranks != started:
        raise UsageError(
            f"this layout has {ranks} ranks, and {started} were started",
            where="parallel",
            hint=f"Start it with `gptbridge train --devices {ranks}`.",
        )
    if ranks == 1:
        return None
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group(dist.get_default_backend_for_device(device.handle))
    place = Place(spec.parallel, dist.get_rank())
    groups = _groups(place)

    def reduce(
        values: Sequence[float], operation: dist.ReduceOp.RedOpType, group: ProcessGroup | None
    ) -> list[float]:
        from gptbridge_torch.collectives import all_reduce

        tensor = torch.tensor(values, dtype=torch.float64, device=device.handle)
        numbers: list[float] = all_reduce(tensor, group, operation).tolist()
        return numbers

    return World(
        place,
        total=lambda values: reduce(values, dist.ReduceOp.SUM, groups.replicas),
        any=lambda flag: bool(reduce([flag], dist.ReduceOp.MAX, groups.all)[0]),
        barrier=dist.barrier,
        handle=groups,
    )


def _groups(place: Place) -> Groups:
    import torch.distributed as dist

    return Groups(
        all=dist.group.WORLD,
        tensor=_group(place.groups("tensor")),
        pipeline=_group(place.groups("pipeline")),
        ends=_group(place.ends()) if place.degree("pipeline") > 1 else None,
        sharding=_group(place.groups("sharding")),
        data=_group(place.groups("data")),
        replicas=_group(place.groups(*REPLICAS)),
        losses=_group(place.groups("pipeline", *REPLICAS)),
    )


def _group(ranks: list[list[int]]) -> ProcessGroup | None:
    """Return this rank's group of `ranks`; None where every rank is alone, or this one in none."""
    return None if len(ranks[0]) == 1 else _made(tuple(map(tuple, ranks)))


@cache  # layouts of the same ranks share them
def _made(ranks: tuple[tuple[int, ...], ...]) -> ProcessGroup | None:
    import torch.distributed as dist

    made = {group: dist.new_group(list(group)) for group in ranks}  # every rank makes all of them
    return next((made[group] for group in ranks if dist.get_rank() in group), None)
