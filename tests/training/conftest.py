"""Real runs for the tests of this room: a tiny model, in processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge.training.events import history, read_events
from tests.command import COMMAND
from tests.conftest import Spawn

TINY = (
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.num_attention_heads=2",
    "model.max_position_embeddings=32",
    "model.hidden_dropout_prob=0.1",
    "model.attention_probs_dropout_prob=0.1",
    "training.seq_length=32",
    "training.global_batch_size=4",
    "training.max_steps=8",
    "training.device=cpu",
    "evaluation.interval=4",
    "evaluation.batches=1",
)
NO_DROPOUT = ("model.hidden_dropout_prob=0", "model.attention_probs_dropout_prob=0")
ENVIRONMENT = {**os.environ, "PYTHONUNBUFFERED": "1"}
NUMBERS = ("loss", "learning_rate", "grad_norm")


def options(overrides: Sequence[str]) -> list[str]:
    return [word for override in overrides for word in ("-o", override)]


def command(*words: str | Path) -> list[str]:
    return [*COMMAND, *map(str, words)]


def gptbridge(*words: str | Path, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run the command line in its own process."""
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=timeout, env=ENVIRONMENT)


@pytest.fixture
def start(spawn: Spawn) -> Spawn:
    """Return a function that starts the command line and lets it run."""
    return lambda *words: spawn(command(*words), env=ENVIRONMENT)


def run_jobs(folder: Path, backend: str, jobs: list[dict[str, Any]]) -> None:
    """Run `jobs` in one process."""
    file = folder / f"{backend}-{len(list(folder.iterdir()))}.json"
    file.write_text(json.dumps([{"backend": backend, **job} for job in jobs]))
    script = Path(__file__).with_name("train_jobs.py")
    done = subprocess.run(
        [sys.executable, str(script), str(file)], capture_output=True, text=True, timeout=240, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-3000:]


def steps_of(run: Path) -> dict[int, dict[str, Any]]:
    """Return step -> its event, as the run counts in the end."""
    events = history(read_events(run / "events.jsonl"))
    return {e["step"]: dict(e) for e in events if e["event"] == "step"}


def numbers_of(run: Path) -> dict[int, tuple[float, ...]]:
    """Return step -> loss, learning rate and gradient norm."""
    return {step: tuple(event[name] for name in NUMBERS) for step, event in steps_of(run).items()}


def kinds_of(run: Path) -> list[str]:
    return [event["event"] for event in read_events(run / "events.jsonl")]


@pytest.fixture(scope="session")
def torch_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two finished runs on torch: `plain` of 8 steps, and `masked` of 2 steps without a token that counts."""
    folder = tmp_path_factory.mktemp("torch_runs")
    np.full(1000, 256, "<u2").tofile(folder / "ends.bin")
    masked = [
        f"data.path={folder / 'ends.bin'}",
        "data.tokenizer=byte",
        "data.split=[1,0,0]",
        "data.mask_end_of_text=true",
        "evaluation.interval=0",
        "training.max_steps=2",
    ]
    runs = {"plain": ["checkpoint.interval=4"], "masked": masked}
    run_jobs(
        folder,
        "torch",
        [{"run": str(folder / name), "overrides": [*TINY, *more]} for name, more in runs.items()],
    )
    return folder


@pytest.fixture(scope="session")
def torch_run(torch_runs: Path) -> Path:
    """A finished run of 8 steps on torch with checkpoints at 4 and 8. Copy it before changing it."""
    return torch_runs / "plain"
