"""Every format once, by one process for each framework."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.exporting.sources import MODELS, write_source
from tests.training.conftest import ENVIRONMENT

JOBS = {
    "no framework": {"huggingface": "odd", "gguf": "plain"},
    "torch": {"onnx": "odd", "torch-export": "plain"},
    "paddle": {"paddle-inference": "plain"},
    "mindspore": {"mindir": "odd"},
}
MADE_OF = {format: model for jobs in JOBS.values() for format, model in jobs.items()}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the checkpoints, by the name of the model."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, model in MODELS.items():
        write_source(folder / name, model)
    return folder


@pytest.fixture(scope="session")
def artefacts(checkpoints: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of the artefacts, by format, and what was done for each."""
    with ThreadPoolExecutor(len(JOBS)) as pool:
        done = list(pool.map(partial(_exported, checkpoints), JOBS.values()))
    return checkpoints, {format: facts for each in done for format, facts in each.items()}


def _exported(checkpoints: Path, jobs: dict[str, str]) -> dict[str, Any]:
    words = [f"{format}:{model}" for format, model in jobs.items()]
    run = subprocess.run(
        [sys.executable, "-m", "tests.exporting.exporting", str(checkpoints), *words],
        capture_output=True,
        text=True,
        timeout=280,
        env=ENVIRONMENT,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    done: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return done
