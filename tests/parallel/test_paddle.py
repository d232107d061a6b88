"""Every layout of the Paddle backend trains as one process does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

from gptbridge.hookspecs import Launch
from gptbridge.plugins.backend import load_backend
from tests.parallel import layouts
from tests.parallel.parity import LayoutTests

BOTH = ("adamw", "sgd")


class TestPaddle(LayoutTests):
    backend = "paddle"
    LAYOUTS: ClassVar[dict[str, tuple[dict[str, Any], tuple[str, ...]]]] = {
        "dp": ({"data": 2}, (*BOTH, "attn-dropped", "adapted")),
        "tp": ({"tensor": 2}, (*BOTH, "attn-dropped")),
        "tp-sequence": ({"tensor": 2, "sequence": True}, (*BOTH, "dropped")),
        "pp": ({"pipeline": 2}, (*BOTH, "dropped")),
        "pp-gpipe": ({"pipeline": 2, "pipeline_schedule": "gpipe"}, ("sgd",)),
        "pp-virtual": ({"pipeline": 2, "virtual_pipeline": 2}, ("adamw",)),
        "sharding-1": ({"sharding": 2, "sharding_stage": 1}, BOTH),
        "sharding-2": ({"sharding": 2, "sharding_stage": 2}, ("sgd",)),
        "sharding-3": ({"sharding": 2, "sharding_stage": 3}, (*BOTH, "attn-dropped")),
        "dp-tp": ({"data": 2, "tensor": 2}, ("sgd",)),
        "dp-pp": ({"data": 2, "pipeline": 2}, ("adamw",)),
        "tp-pp": ({"tensor": 2, "pipeline": 2, "sequence": True}, ("adamw", "dropped", "packed")),
        "dp-sharding-2": ({"data": 2, "sharding": 2, "sharding_stage": 2}, ("adamw",)),
        "tp-sharding-1": ({"tensor": 2, "sharding": 2, "sharding_stage": 1}, ("adamw",)),
        "tp-sharding-3": ({"tensor": 2, "sequence": True, "sharding": 2, "sharding_stage": 3}, ("adamw",)),
        "pp-sharding-3": (
            {"pipeline": 2, "virtual_pipeline": 2, "sharding": 2, "sharding_stage": 3},
            ("adamw",),
        ),
    }
    BROKEN: ClassVar[dict[str, tuple[str, str]]] = {
        "gradients": ("dp", "gptbridge_paddle.session:all_reduce_each"),
        "gradients of the stream": ("tp-sequence", "gptbridge_paddle.session:all_reduce_each"),
        "gradients of a tied embedding": ("pp", "gptbridge_paddle.session:all_reduce_each"),
        "sums over the vocabulary": ("tp", "gptbridge_paddle.loss:all_reduce"),
        "sums of rows": ("tp", "gptbridge_paddle.parts:leave"),
        "gradients of columns": ("tp", "gptbridge_paddle.parts:enter"),
        "the norm": ("pp", "gptbridge_paddle.optimizer:all_reduce"),
        "trained rows": ("sharding-1", "gptbridge_paddle.session:spread"),
    }


def test_ranks_exchange_what_they_mean(tmp_path: Path) -> None:
    launch = Launch(processes=4, logs=tmp_path / "logs", port=layouts.free_port())
    command = [sys.executable, "-m", "tests.parallel.exchanges"]
    layouts.finish(load_backend("paddle").launch_command(launch, command), tmp_path)
