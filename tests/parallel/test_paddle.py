"""Every layout of the Paddle backend trains as one process does."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

from gptbridge.hookspecs import Launch
from gptbridge.plugins.backend import load_backend
from tests.parallel import layouts
from tests.parallel.parity import LayoutTests

FULL = {"recompute": "full"}


class TestPaddle(LayoutTests):
    backend = "paddle"
    steps = 3
    LAYOUTS: ClassVar[dict[str, dict[str, Any]]] = {
        "dp2": {"data": 2},
        "tp2": {"tensor": 2},
        "tp2-sequence": {"tensor": 2, "sequence": True},
        "pp2": {"pipeline": 2},
        "pp2-gpipe": {"pipeline": 2, "pipeline_schedule": "gpipe"},
        "pp2-virtual": {"pipeline": 2, "virtual_pipeline": 2},
        "sharding1": {"sharding": 2, "sharding_stage": 1},
        "sharding2": {"sharding": 2, "sharding_stage": 2},
        "sharding3": {"sharding": 2, "sharding_stage": 3},
        "dp2-tp2": {"data": 2, "tensor": 2},
        "dp2-pp2": {"data": 2, "pipeline": 2},
        "tp2-pp2": {"tensor": 2, "pipeline": 2, "sequence": True},
        "dp2-sharding2": {"data": 2, "sharding": 2, "sharding_stage": 2},
        "tp2-sharding1": {"tensor": 2, "sharding": 2, "sharding_stage": 1},
        "tp2-sharding3": {"tensor": 2, "sequence": True, "sharding": 2, "sharding_stage": 3},
        "pp2-sharding3": {"pipeline": 2, "virtual_pipeline": 2, "sharding": 2, "sharding_stage": 3},
    }
    DROPPED: ClassVar[dict[str, dict[str, Any]]] = {
        "dp2": {},
        "tp2": {"recompute": "core_attn"},
        "tp2-sequence": FULL,
        "pp2": FULL,
        "sharding3": {"recompute": "full_attn"},
        "tp2-pp2": FULL,
    }
    BROKEN: ClassVar[dict[str, tuple[str, str]]] = {
        "gradients-not-summed": ("dp2", "gptbridge_paddle.session:all_reduce_each"),
        "stream-not-summed": ("tp2-sequence", "gptbridge_paddle.session:all_reduce_each"),
        "ends-not-summed": ("pp2", "gptbridge_paddle.session:all_reduce_each"),
        "loss-not-summed": ("tp2", "gptbridge_paddle.loss:all_reduce"),
        "rows-not-summed": ("tp2", "gptbridge_paddle.parts:leave"),
        "columns-not-summed": ("tp2", "gptbridge_paddle.parts:enter"),
        "norm-not-summed": ("pp2", "gptbridge_paddle.optimizer:all_reduce"),
        "rows-not-spread": ("sharding1", "gptbridge_paddle.session:spread"),
    }


def test_ranks_exchange_what_they_mean(tmp_path: Path) -> None:
    launch = Launch(processes=4, logs=tmp_path / "logs", port=layouts.free_port())
    command = [sys.executable, "-m", "tests.parallel.exchanges"]
    layouts.finish(load_backend("paddle").launch_command(launch, command), tmp_path)
