"""docs/evaluation.md says what the code does: its commands run, on 80 columns, its tables are the code's."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from docs.protocol_tables import PAGE, page
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.evaluation.evaluate import TASKS
from gptbridge.evaluation.protocols import PROTOCOLS
from tests.checkpoint.conftest import spec_of, writer
from tests.evaluation.conftest import CLOZES, PAIRS, QUESTIONS, WIKI, write_records
from tests.training.conftest import ENVIRONMENT

TEXT = PAGE.read_text()

# Runs the command lines that come as arguments, one after the other in this process.
SCRIPT = """
import shlex, sys
from gptbridge_cli.main import main
for line in sys.argv[1:]:
    sys.argv = shlex.split(line)
    try:
        main()
    except SystemExit as end:
        if end.code:
            raise
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with everything that the page names."""
    run = spec_of(max_position_embeddings=64)
    run = run.model_copy(update={"training": run.training.model_copy(update={"seq_length": 64})})
    CheckpointStore(tmp_path / "runs" / "first" / "checkpoints").save(7, writer(run, 7))
    (tmp_path / "wiki.txt").write_text(WIKI)
    write_records(tmp_path / "lambada.jsonl", [{"text": text} for text in CLOZES if len(text) < 30])
    write_records(tmp_path / "poems.jsonl", PAIRS)
    write_records(tmp_path / "questions.jsonl", QUESTIONS)
    return tmp_path


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def test_every_command_runs(folder: Path) -> None:
    commands = [line for block in blocks("console") for line in block.splitlines()]
    assert len(commands) == 12
    used = {
        words[index + 1]
        for words in map(shlex.split, commands)
        for index, w in enumerate(words)
        if w == "--protocol"
    }
    assert used == PROTOCOLS.keys() - {"strict"}
    done = run([sys.executable, "-c", SCRIPT, *commands], folder)
    assert max(len(line) for line in done.splitlines() if not line.startswith(" ")) <= 80  # but in JSON
    for name in (
        "perplexity ",
        "adjusted perplexity ",
        "normalised_accuracy",
        "tokenizer ",
        "window ",
        "stride ",
    ):
        assert name in done


def test_the_python_runs(folder: Path) -> None:
    (code,) = blocks("python")
    assert len(run([sys.executable, "-c", code], folder).split()) == 3


def run(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=folder, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stderr == ""
    return done.stdout


def test_every_task_and_quirk_is_on_the_page() -> None:
    assert page(TEXT) == TEXT, "run python docs/protocol_tables.py"
    listed = re.findall(r"^\| `([\w-]+)` \|", TEXT, re.MULTILINE)
    assert listed[: len(TASKS)] == list(TASKS)
    quirks = [quirk for each in PROTOCOLS.values() for several in each.quirks.values() for quirk in several]
    assert max(len(f"not strict: {quirk}") for quirk in quirks) <= 80
