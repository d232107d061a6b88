"""Groups of ranks on Paddle's own communication: gloo on CPUs, NCCL on GPUs."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from multiprocessing.connection import Client, Connection, Listener
from typing import Any

import paddle.distributed as dist
from paddle.base import core
from paddle.distributed import collective

PATIENCE = 1800  # seconds until a rank that does not come is given up

_made: dict[tuple[str, tuple[int, ...]], Group | None] = {}  # layouts of the same ranks share them


@dataclass(frozen=True)
class Group:
    """Ranks that exchange tensors; this one is among them."""

    ranks: tuple[int, ...]
    handle: Any  # Paddle's own group
    lines: Mapping[int, Connection]  # from the first rank to each of the others, and back
    store: Any  # where its gloo has met: freed, it would close
    sender: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))

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
        """Wait until all ranks are here, before what they do together: gloo would give up after 30 seconds.

        ConnectionError names a rank that has ended, or has not come in half an hour.
        """
        first = self.rank == 0
        for rank, line in self.lines.items():
            try:
                if not first:
                    line.send_bytes(b"here")
                if not line.poll(PATIENCE):
                    raise ConnectionError(f"rank {rank} has not come within {PATIENCE} s")
                line.recv_bytes()
            except (EOFError, BrokenPipeError, ConnectionResetError) as error:
                raise ConnectionError(f"rank {rank} has ended") from error
        for line in self.lines.values() if first else ():
            line.send_bytes(b"go")


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
    lines = _lines(common, ranks, key) if member else {}
    collective._default_store = store = _private_store(common, ranks, f"{key}/store") if member else common
    try:
        made = dist.new_group(list(ranks))
    finally:
        collective._default_store = common
    return Group(ranks, made, lines, store) if member else None


def _private_store(common: Any, ranks: tuple[int, ...], key: str) -> Any:
    """Return a store of the first of `ranks`, whose address it leaves in the store of all."""
    if dist.get_rank() != ranks[0]:
        return core.TCPStore(*_address(common, key), False, len(ranks))
    with socket.socket() as free:
        free.bind((_host(), 0))
        port = free.getsockname()[1]
    common.set(key, f"{_host()}:{port}")  # before the store is made, which waits for the others
    return core.TCPStore(_host(), port, True, len(ranks))


def _lines(common: Any, ranks: tuple[int, ...], key: str) -> dict[int, Connection]:
    """Return connections between the first of `ranks` and each of the others, by the rank that is called."""
    if dist.get_rank() != ranks[0]:
        line = Client(_address(common, key))
        line.send_bytes(str(dist.get_rank()).encode())
        return {ranks[0]: line}
    with Listener((_host(), 0), backlog=len(ranks)) as listener:
        common.set(key, f"{_host()}:{listener.address[1]}")
        lines = [listener.accept() for _ in ranks[1:]]
    return {int(line.recv_bytes()): line for line in lines}


def _address(common: Any, key: str) -> tuple[str, int]:
    common.wait(key)
    host, _, port = bytes(common.get(key)).decode().rpartition(":")
    return host, int(port)


def _host() -> str:
    return os.environ["PADDLE_CURRENT_ENDPOINT"].rpartition(":")[0]
