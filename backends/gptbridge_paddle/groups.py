"""Groups of ranks on Paddle's own communication: gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import paddle.distributed as dist
from paddle.base import core
from paddle.distributed import collective

_made: dict[tuple[str, tuple[int, ...]], Group | None] = {}  # layouts of the same ranks share them


@dataclass(frozen=True)
class Group:
    """Ranks that exchange tensors; this one is among them."""

    ranks: tuple[int, ...]
    handle: Any  # Paddle's own group
    store: Any  # where its members meet, theirs alone
    sender: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    meetings: Iterator[int] = field(default_factory=count)

    @property
    def size(self) -> int:
        """How many ranks it has."""
        return len(self.ranks)

    @property
    def rank(self) -> int:
        """This rank's number in the group."""
        return self.ranks.index(dist.get_rank())

    @property
    def peer(self) -> int:
        """The other rank of a pair."""
        return self.ranks[1 - self.rank]

    def meet(self) -> None:
        """Wait until all ranks are here, for as long as a store waits: gloo gives up after 30 seconds."""
        meeting = next(self.meetings)
        if self.store.add(f"at {meeting}", 1) == self.size:
            self.store.set(f"met {meeting}", "")
        self.store.wait(f"met {meeting}")


def group_of(lists: Sequence[Sequence[int]], purpose: str = "") -> Group | None:
    """Return which of the groups `lists` this rank is in; None where it would be alone, or is in none.

    All ranks ask for the same groups in the same order. Ranks of a gloo group count their messages: a
    purpose for which some count others than the rest needs groups of its own.
    """
    mine = None
    for ranks in map(tuple, lists):
        if len(ranks) == 1:
            continue
        if (purpose, ranks) not in _made:
            _made[purpose, ranks] = _new_group(ranks, f"gptbridge/{len(_made)}")
        mine = _made[purpose, ranks] or mine
    return mine


def _new_group(ranks: tuple[int, ...], key: str) -> Group | None:
    """Return a group of `ranks`; None where this rank is not among them.

    Its members meet at a store of their own: all gloo groups of Paddle's meet under the same names in the
    default store, where a late rank reads the address that a member of another group had.
    """
    common = collective._default_store
    member = dist.get_rank() in ranks
    collective._default_store = store = _private_store(common, ranks, key) if member else common
    try:
        made = dist.new_group(list(ranks))
    finally:
        collective._default_store = common
    return Group(ranks, made, store) if member else None


def _private_store(common: Any, ranks: tuple[int, ...], key: str) -> Any:
    """Return a store of the first of `ranks`, whose address it leaves in the store of all."""
    if dist.get_rank() != ranks[0]:
        common.wait(key)
        host, _, port = bytes(common.get(key)).decode().rpartition(":")
        return core.TCPStore(host, int(port), False, len(ranks))
    host = os.environ["PADDLE_CURRENT_ENDPOINT"].rpartition(":")[0]
    with socket.socket() as free:
        free.bind((host, 0))
        port = free.getsockname()[1]
    common.set(key, f"{host}:{port}")  # before the store is made, which waits for the others
    return core.TCPStore(host, port, True, len(ranks))
