"""Every command of docs/generation.md runs, and its tables say what the code does."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from gptbridge.generation.requests import Reason
from gptbridge_specs.generation import PRESETS
from tests.command import COMMAND
from tests.training.conftest import ENVIRONMENT

PAGE = (Path(__file__).parents[2] / "docs/generation.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.mark.timeout(900)
def test_every_command_runs(tmp_path: Path) -> None:
    """In one shell, in order; then the Python, on the run that the commands made."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "gptbridge"
    command.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{COMMAND[-1]}' \"$@\"\n")
    command.chmod(0o755)
    environment = {**ENVIRONMENT, "PATH": f"{tmp_path / 'bin'}:{ENVIRONMENT['PATH']}"}
    (shell,) = blocks("bash")
    (code,) = blocks("python")
    for words in (("sh", "-e", "-c", shell), (sys.executable, "-c", code)):
        done = subprocess.run(
            words, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=800
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "def " in done.stdout or words[0] == sys.executable


def test_the_tables_are_complete() -> None:
    first = re.findall(r"^\| `(\w+)` \|", PAGE, re.MULTILINE)
    assert first == [*get_args(Reason), *PRESETS]
