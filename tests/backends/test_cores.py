"""Threads keep within the container: its quota, not the machine's cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gptbridge.process import cores

SET_UP = """
import sys
from pathlib import Path
from gptbridge.process import cores
cores.CPU_QUOTA = Path(sys.argv[1])
from gptbridge_torch import hardware
print(hardware.setup("cpu").name)
"""


@pytest.mark.parametrize(("quota", "usable"), [("max 100000", 8), ("200000 100000", 2), ("5000 100000", 1)])
def test_the_quota_limits_the_cores(
    quota: str, usable: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(cores, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert cores.usable_cores() == usable


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core has no thread to save")
@pytest.mark.parametrize(("quota", "told", "threads"), [("100000", None, 1), ("100000", "2", 2)])
def test_torch_keeps_within_it_unless_told(
    quota: str, told: str | None, threads: int, tmp_path: Path
) -> None:
    (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    if told:
        environment["OMP_NUM_THREADS"] = told
    command = [sys.executable, "-c", SET_UP, str(tmp_path / "cpu.max")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.strip() == f"CPU, {threads} threads"
