"""Parallel layouts of the torch backend: what it refuses, how ranks are started, how they meet."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

from gptbridge.hookspecs import Launch
from gptbridge.plugins.capabilities import Limit
from gptbridge.process import groups
from gptbridge.process.place import Place
from gptbridge.process.world import World, has_others

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

    from gptbridge.session import Device
    from gptbridge_specs import RunSpec

LIMITS = (
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


class Groups(groups.Groups["ProcessGroup"]):
    """Groups of processes."""


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
    if not has_others(spec.parallel, started=int(os.environ.get("WORLD_SIZE", "1"))):
        return None
    import torch
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group(dist.get_default_backend_for_device(device.handle))
    place = Place(spec.parallel, dist.get_rank())
    own = Groups.of(place, _group)

    def reduce(
        values: Sequence[float], operation: dist.ReduceOp.RedOpType, group: ProcessGroup | None
    ) -> list[float]:
        from gptbridge_torch.collectives import all_reduce

        tensor = torch.tensor(values, dtype=torch.float64, device=device.handle)
        numbers: list[float] = all_reduce(tensor, group, operation).tolist()
        return numbers

    return World(
        place,
        total=lambda values: reduce(values, dist.ReduceOp.SUM, own.replicas),
        any=lambda flag: bool(reduce([flag], dist.ReduceOp.MAX, own.all)[0]),
        barrier=dist.barrier,
        handle=own,
    )


def _group(ranks: list[list[int]]) -> ProcessGroup | None:
    """Return which of the groups `ranks` this rank is in."""
    return _made(tuple(map(tuple, ranks)))


@cache  # layouts of the same ranks share them
def _made(ranks: tuple[tuple[int, ...], ...]) -> ProcessGroup | None:
    import torch.distributed as dist

    made = {group: dist.new_group(list(group)) for group in ranks}  # every rank makes all of them
    return next((made[group] for group in ranks if dist.get_rank() in group), None)
