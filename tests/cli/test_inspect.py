"""`gptbridge inspect` knows checkpoints, run folders and token datasets apart."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.command import COMMAND
from tests.data.token_files import write_megatron

TINY = "model.hidden_size=32 model.num_layers=1 training.seq_length=16 training.max_steps=2"


def gptbridge(*arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*COMMAND, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dataset_is_known_by_its_prefix_and_its_files(tmp_path: Path) -> None:
    write_megatron(tmp_path / "x", [[1, 2, 3], [4, 5]])
    for name in ("x", "x.bin", "x.idx"):
        assert json.loads(gptbridge("inspect", str(tmp_path / name), "--json"))["documents"] == 2


def test_a_run_folder_is_its_newest_checkpoint(tmp_path: Path) -> None:
    overrides = [part for change in TINY.split() for part in ("-o", change)]
    run = tmp_path / "run"
    gptbridge("train", "--backend", "torch", "--run", str(run), "--quiet", *overrides)
    checkpoint = run / "checkpoints" / "step-00000002"
    of_run, of_checkpoint = (
        json.loads(gptbridge("inspect", str(path), "--json")) for path in (run, checkpoint)
    )
    assert of_run["digest"] == of_checkpoint["digest"]
    gptbridge("convert", "--to", "mindspore", str(run), str(tmp_path / "ms"), "--quiet")
    assert json.loads(gptbridge("inspect", str(tmp_path / "ms"), "--json"))["digest"] == of_run["digest"]
