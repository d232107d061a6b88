"""Parallel layouts of the MindSpore backend: what it refuses, how ranks are started, how they meet."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptbridge.hookspecs import Launch
from gptbridge.process import groups
from gptbridge.process.place import Place
from gptbridge.process.world import World, has_others

if TYPE_CHECKING:
    from gptbridge.session import Device
    from gptbridge_mindspore.collectives import Group
    from gptbridge_specs import ModelSpec, RunSpec
    from gptbridge_specs.run import ParallelSpec


# A CPU's collective gives up after some minutes, and a rank may compile, read or save for longer than others.
# The scheduler ends all after 30 s without a sign of a rank, which one lost answer to such a sign can take.
# Who hangs is for the command above to say (--hang-timeout): the rank that gives up would be blamed.
PATIENCE = dict.fromkeys(["MS_CPU_COMM_OP_TIMEOUT", "MS_NODE_TIMEOUT"], str(24 * 3600))  # seconds


@dataclass(frozen=True, slots=True)
class Groups(groups.Groups["Group"]):
    """With the pairs of stages."""

    onward: Group | None = None  # this stage and the next; the last and the first
    back: Group | None = None  # this stage and the one before


@dataclass(frozen=True, slots=True)
class Cut:
    """What tensor parallelism leaves this rank of a model, and the ranks that have the rest."""

    heads: range
    ffn: range
    words: range
    group: Group | None = None
    sequence: bool = False  # between its parts, a rank has some tokens of each sample

    def padded(self, length: int) -> int:
        """Return how many tokens are computed for samples of `length`: where they are cut, equal parts."""
        ranks = self.group.size if self.group is not None and self.sequence else 1
        return -(-length // ranks) * ranks

    def tokens(self, length: int) -> slice:
        """Return which of the tokens this rank has between its parts."""
        if self.group is None or not self.sequence:
            return slice(0, length)
        size = self.padded(length) // self.group.size
        return slice(self.group.index * size, (self.group.index + 1) * size)


def cut_of(model: ModelSpec, place: Place, groups: Groups, *, sequence: bool = False) -> Cut:
    """Return what the rank at `place` has of the letters that the architecture table cuts."""
    from gptbridge.weights.architecture import sizes, tensor_slice, weight_axes

    rank, degree, whole = place.index("tensor"), place.degree("tensor"), sizes(model)
    boxes = (tensor_slice(weight_axes(name), whole, rank, degree) for name in CUT_ALIKE)
    heads, ffn, words = (range(*box[letter]) for box, letter in zip(boxes, CUT_ALIKE.values(), strict=True))
    return Cut(heads, ffn, words, groups.tensor, sequence)


def by_pieces(parallel: ParallelSpec) -> bool:
    """Return whether a rank computes layer by layer, instead of all that it has in one graph."""
    return parallel.pipeline > 1 or (parallel.sharding > 1 and parallel.sharding_stage == 3)


# A weight that is cut along each letter, as all others of the letter are.
CUT_ALIKE = {"attn.q.weight": "m", "mlp.c_fc.weight": "f", "wte.weight": "v"}


def rank() -> int | None:
    """Return which rank msrun has made this process; None for its scheduler, and where there is no msrun."""
    return int(os.environ["RANK_ID"]) if os.environ.get("MS_ROLE") == "MS_WORKER" else None


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
    if not has_others(spec.parallel, started=int(os.environ.get("MS_WORKER_NUM", "1"))):
        return None
    from mindspore.communication import get_rank, init

    from gptbridge_mindspore.collectives import total

    for name, seconds in PATIENCE.items():
        os.environ.setdefault(name, seconds)
    init()
    place = Place(spec.parallel, get_rank())

    own = groups_of(place, native=device.kind == "ascend")
    total([0.0], own.all)
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):  # MindSpore's first collective takes them from Python
            signal.signal(number, signal.getsignal(number))

    def barrier() -> None:
        total([0.0], own.all)

    return World(
        place,
        total=lambda values: total(values, own.replicas),
        any=lambda flag: total([flag], own.all) != [0.0],
        barrier=barrier,
        handle=own,
    )


def groups_of(place: Place, *, native: bool) -> Groups:
    """Return the groups of the rank at `place`, which it makes with their other ranks."""
    from gptbridge_mindspore.collectives import group_of

    def among(ranks: list[list[int]]) -> Group | None:
        mine = next((tuple(sorted(group)) for group in ranks if place.rank in group), None)
        return group_of(mine, place.rank, native=native) if mine else None

    if place.degree("pipeline") == 1:
        return Groups.of(place, among)
    (chain,) = (ranks for ranks in place.groups("pipeline") if place.rank in ranks)
    stage = place.index("pipeline")
    onward, back = ([[chain[(stage + n) % len(chain)], chain[stage + n - 1]]] for n in (1, 0))
    return Groups.of(place, among, onward=among(onward), back=among(back))
