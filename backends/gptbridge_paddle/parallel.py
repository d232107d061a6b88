"""How Paddle would cut the model and the batch over devices. It runs on one device so far."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from gptbridge.hookspecs import Launch
from gptbridge.plugins.capabilities import SINGLE_DEVICE

LIMITS = SINGLE_DEVICE


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
