"""Kills, signals, locks, full disks and damage: real processes on torch, and nothing lost."""

from __future__ import annotations

import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gptbridge.training.events import read_events
from tests.checkpoint.conftest import opened_run
from tests.command import CODE
from tests.conftest import Spawn
from tests.training.conftest import (
    ENVIRONMENT,
    TINY,
    command,
    gptbridge,
    kinds_of,
    numbers_of,
    options,
    run_jobs,
)

pytestmark = pytest.mark.timeout(300)
LONG = (*TINY, "evaluation.interval=0", "checkpoint.interval=1")


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until the run has done `step` steps since the process began."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise AssertionError(process.communicate()[1])
        if (run / "events.jsonl").exists():
            lines = (run / "events.jsonl").read_bytes().split(b"\n")
            if any(b'"event": "step"' in line and f'"step": {step},'.encode() in line for line in lines):
                return
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within 120 s")


def test_killed_at_any_moment_it_continues_from_a_whole_checkpoint(tmp_path: Path, start: Spawn) -> None:
    overrides = [*LONG, "training.max_steps=300"]
    rarely = ["checkpoint.interval=300"]
    run = tmp_path / "killed"
    moments = random.Random(7)
    for kill in range(3):
        process = start(
            "train", "-b", "torch", "--run", run, "--resume", "auto", "--quiet", *options(overrides)
        )
        done = max(numbers_of(run), default=0) if (run / "events.jsonl").exists() else 0
        wait_for_step(run, done + 8, process)
        time.sleep(moments.uniform(0, 0.1))
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL, f"kill {kill} came after the end"
        for checkpoint in (run / "checkpoints").glob("step-*"):
            with opened_run(checkpoint):
                pass
    rest = {"run": str(run), "resume": "auto", "overrides": rarely}
    whole = {"run": str(tmp_path / "whole"), "overrides": [*overrides, *rarely]}
    run_jobs(tmp_path, "torch", [rest, whole])
    assert numbers_of(run) == numbers_of(tmp_path / "whole")
    assert kinds_of(run).count("resume") == 3
    assert not list((run / "checkpoints").glob(".*"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_saves_and_ends_the_run(
    tmp_path: Path, number: signal.Signals, code: int, start: Spawn, signals_count: None
) -> None:
    run = tmp_path / "run"
    overrides = [*LONG, "training.max_steps=1000000", "checkpoint.interval=1000000"]
    process = start("train", "-b", "torch", "--run", run, *options(overrides))
    wait_for_step(run, 5, process)
    other = gptbridge("train", "-b", "torch", "--run", run, "--resume", "auto", *options(overrides))
    assert other.returncode == 2
    assert f"process {process.pid}" in other.stderr
    assert len(other.stderr.splitlines()) == 1
    process.send_signal(number)
    _, problem = process.communicate(timeout=60)
    assert process.returncode == code
    last = max(numbers_of(run))
    (saved,) = (run / "checkpoints").iterdir()
    assert saved.name == f"step-{last:08d}"
    with opened_run(saved) as checkpoint:
        assert checkpoint.state.step == last
    assert number.name in problem
    assert [line.partition(" ")[0] for line in problem.splitlines()] == ["stopping", "error:"]
    end = read_events(run / "events.jsonl")[-1]
    assert (end["event"], end["reason"]) == ("end", "interrupted")


@pytest.mark.parametrize("words", [(), ("--quiet",)])
def test_a_terminal_that_hangs_up_costs_no_step(
    tmp_path: Path, words: tuple[str, ...], spawn: Spawn, signals_count: None
) -> None:
    """Close a real terminal while the run draws on it: the signal comes, and every later write fails."""
    run = tmp_path / "run"
    overrides = [*TINY, "training.max_steps=1000000", "checkpoint.interval=1000000", "evaluation.interval=1"]
    ours, terminal = pty.openpty()
    claim = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    python, option, code, *rest = command("train", "-b", "torch", "--run", run, *words, *options(overrides))
    process = spawn(
        [python, option, claim + code, *rest],
        **dict.fromkeys(("stdin", "stdout", "stderr"), terminal),
        start_new_session=True,
        env=ENVIRONMENT,
    )
    os.close(terminal)
    wait_for_step(run, 5, process)
    os.close(ours)
    assert process.wait(60) == 129
    (saved,) = (run / "checkpoints").iterdir()
    assert saved.name == f"step-{max(numbers_of(run)):08d}"
    assert read_events(run / "events.jsonl")[-1]["reason"] == "interrupted"


def test_a_reader_that_leaves_does_not_end_the_run(tmp_path: Path, start: Spawn) -> None:
    process = start("train", "-b", "torch", "--run", tmp_path / "run", *options(TINY))
    assert process.stdout
    assert process.stderr
    assert process.stdout.readline().startswith("backend")
    process.stdout.close()
    assert process.wait(60) == 0
    assert process.stderr.read() == ""
    assert read_events(tmp_path / "run/events.jsonl")[-1]["reason"] == "complete"


def test_a_full_disk_costs_only_the_checkpoint_that_did_not_fit(torch_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(torch_run, tmp_path / "run")
    shutil.rmtree(run / "checkpoints/step-00000008")
    limit = 200_000  # bytes of one file: weights fit, moments do not
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit})); {CODE}"
    words = ["train", "-b", "torch", "--resume", str(run), "--quiet"]
    full = subprocess.run(
        [sys.executable, "-c", limited, *words], capture_output=True, text=True, timeout=120, env=ENVIRONMENT
    )
    assert full.returncode == 1
    assert "step-00000008: the checkpoint could not be saved: File too large" in full.stderr
    assert len(full.stderr.splitlines()) == 1
    assert [entry.name for entry in (run / "checkpoints").iterdir()] == ["step-00000004"]
    run_jobs(tmp_path, "torch", [{"run": str(run), "resume": "auto"}])
    assert numbers_of(run) == numbers_of(torch_run)


def test_bad_data_midway_costs_no_step(tmp_path: Path) -> None:
    """The bad token lies between the blocks that are looked at when the run begins."""
    ids = np.zeros(2_000_000, "<u2")
    ids[5000] = 5000
    ids.tofile(tmp_path / "data.bin")
    run = tmp_path / "run"
    data = ["data.tokenizer=byte", "data.split=[1,0,0]", "data.shuffle=false", "evaluation.interval=0"]
    large = ["training.global_batch_size=32"]  # 1024 tokens a step
    result = gptbridge(
        *("train", "-b", "torch", "--run", run),
        *options([*TINY, f"data.path={tmp_path / 'data.bin'}", *data, *large]),
    )
    assert result.returncode == 5
    assert "token 5000 in document 0 is beyond the vocabulary" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000004"]


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    result = gptbridge("train", "-b", "torch", "--run", file / "run", *options(TINY))
    assert result.returncode == 2
    assert result.stderr == (
        f"error: {file}: this is a file, a run needs a folder. Give another folder with --run\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes to read-only folders")
def test_a_read_only_output_is_one_line(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    result = gptbridge("train", "-b", "torch", "--run", tmp_path / "run", *options(TINY))
    tmp_path.chmod(0o700)
    assert result.returncode == 1
    assert "Permission denied" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_damaged_newest_checkpoint_is_named_and_passed_over(torch_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(torch_run, tmp_path / "run")
    weights = run / "checkpoints/step-00000008/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-100] ^= 1
    weights.write_bytes(content)
    result = gptbridge("train", "-b", "torch", "--resume", run)
    assert result.returncode == 0
    assert f"{weights}: damaged" in result.stdout
    assert "resume   after step 4 by torch" in result.stdout
    assert "complete at step 8" in result.stdout.splitlines()
    assert numbers_of(run) == numbers_of(torch_run)
    names = sorted(entry.name for entry in (run / "checkpoints").iterdir())
    assert names == ["damaged-step-00000008", "step-00000004", "step-00000008"]


def test_a_run_whose_checkpoints_are_all_damaged_is_refused(torch_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(torch_run, tmp_path / "run")
    for state in run.glob("checkpoints/*/state.json"):
        state.unlink()
    result = gptbridge("train", "-b", "torch", "--run", run, "--resume", "auto")
    assert result.returncode == 5
    assert "every checkpoint is damaged" in result.stderr
    assert len(list(run.glob("checkpoints/step-*"))) == 2
