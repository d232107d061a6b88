"""Every command of docs/export.md runs, and its tables say what the code does."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.exporting.formats import FORMATS
from tests.checkpoint.conftest import spec_of, writer
from tests.evaluation.test_docs import SCRIPT
from tests.training.conftest import ENVIRONMENT

PAGE = (Path(__file__).parents[2] / "docs/export.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=ENVIRONMENT, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.timeout(300)
def test_every_command_runs(tmp_path: Path) -> None:
    """Those of gptbridge in one process, which starts torch once; then the scripts, and the Python."""
    spec = spec_of()
    CheckpointStore(tmp_path / "run" / "checkpoints").save(7, writer(spec, 7))
    (shell,), (code,) = blocks("bash"), blocks("python")
    ours = [line for line in shell.splitlines() if line.startswith("gptbridge ")]
    scripts = [line for line in shell.splitlines() if line.startswith("python ")]
    assert (len(ours), len(scripts)) == (5, 2)
    printed = run([sys.executable, "-c", SCRIPT, *ours], tmp_path)
    assert printed.count("same logits") == 2  # with q8_0, and with onnx; the others print JSON, or skip it
    assert max(len(line) for line in printed.splitlines() if not line.startswith(" ")) <= 120
    for line in scripts:
        assert run([sys.executable, *shlex.split(line)[1:]], tmp_path)
    assert "same logits" in run([sys.executable, "-c", code], tmp_path)


def test_the_tables_are_complete() -> None:
    first = re.findall(r"^\| `([\w-]+)` \|.*\| ([^|]*) \|$", PAGE, re.MULTILINE)[: len(FORMATS)]
    assert first == [
        (name, " ".join(f"`{dtype}`" for dtype in form.dtypes)) for name, form in FORMATS.items()
    ]
    section = PAGE.partition("\n## What is refused\n")[2]
    refused = re.findall(r"^\| `([\w-]+)` \| `([\w.]+)` \|", section, re.MULTILINE)
    in_code = {(name, refusal.field) for name, form in FORMATS.items() for refusal in form.refusals}
    assert set(refused) == in_code | {("paddle-inference", "model.layernorm_epsilon")}
