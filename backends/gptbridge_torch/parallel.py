"""Parallel layouts of the torch backend: one device so far."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from gptbridge.hookspecs import Launch
from gptbridge.plugins.capabilities import SINGLE_DEVICE

LIMITS = SINGLE_DEVICE


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
