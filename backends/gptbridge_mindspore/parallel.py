"""How the MindSpore backend is laid out over devices: on one, so far."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from gptbridge.hookspecs import Launch
from gptbridge.plugins.capabilities import SINGLE_DEVICE

LIMITS = SINGLE_DEVICE


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
