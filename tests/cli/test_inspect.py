"""`gptbridge inspect` knows checkpoints, run folders and token datasets apart."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np

from tests.command import COMMAND
from tests.data.token_files import write_megatron

TINY = "model.hidden_size=32 model.num_layers=1 training.seq_length=16 training.max_steps=2"


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def gptbridge(*arguments: str) -> str:
    done = run_command(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_dataset_is_known_by_its_prefix_and_its_files(tmp_path: Path) -> None:
    write_megatron(tmp_path / "x", [[1, 2, 3], [4, 5]])
    for name in ("x", "x.bin", "x.idx"):
        assert json.loads(gptbridge("inspect", str(tmp_path / name), "--json"))["documents"] == 2


def test_a_folder_of_raw_tokens_is_a_dataset_unless_a_dialect_is_told(tmp_path: Path) -> None:
    for name in ("train.bin", "val.bin"):
        np.arange(1, 10, dtype="<u2").tofile(tmp_path / name)
    facts = json.loads(gptbridge("inspect", str(tmp_path), "--json"))
    assert (facts["format"], facts["tokens"]) == ("nanogpt", 18)
    done = run_command("inspect", str(tmp_path / "val.bin"), "--from", "torch")
    assert (done.returncode, "is no weight file" in done.stderr) == (5, True)


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
    np.arange(1, 10, dtype="<u2").tofile(tmp_path / "ms" / "tokenizer.bin")
    assert json.loads(gptbridge("inspect", str(tmp_path / "ms"), "--json"))["digest"] == of_run["digest"]


def test_too_long_a_name_is_one_line() -> None:
    done = run_command("inspect", "n" * 300)
    assert done.returncode == 5
    assert done.stderr.startswith("error: nnn")
    assert done.stderr.endswith("...: File name too long\n")
