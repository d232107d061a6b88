"""Every format once, by one process for each framework."""

from __future__ import annotations

import json
import subprocess
import sys
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
    done: dict[str, Any] = {}
    for jobs in JOBS.values():
        words = [f"{format}:{model}" for format, model in jobs.items()]
        command = [sys.executable, "-m", "tests.exporting.exporting", str(checkpoints), *words]
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=250,
            env=ENVIRONMENT,
            cwd=Path(__file__).parents[2],
            check=False,
        )
        assert run.returncode == 0, run.stderr[-3000:]
        done |= json.loads(run.stdout.splitlines()[-1])
    return checkpoints, done
