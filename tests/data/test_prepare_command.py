"""What `gptbridge data prepare` and `tokenizer train` print, and where."""

from __future__ import annotations

import json
import os
import pty
import subprocess
from pathlib import Path

import pytest

from gptbridge_cli import progress
from tests.command import COMMAND

pytestmark = pytest.mark.timeout(60)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=50, check=False)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "one two"}\nbroken\n{"text": ""}\n{"text": "three"}\n')
    return path


def test_facts_go_to_stdout_and_the_rest_to_stderr(source: Path) -> None:
    prefix = source.parent / "out"
    arguments = ["data", "prepare", str(source), "--tokenizer", "byte", "--output", str(prefix)]
    refused = run(*arguments)
    assert (refused.returncode, refused.stdout) == (5, "")
    assert refused.stderr.startswith(f"error: {source}, line 2: not JSON")
    assert refused.stderr.count("\n") == 1

    done = run(*arguments, "--skip-bad", "--append-eos", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == json.loads(Path(f"{prefix}.json").read_text())
    assert "line 2: skipped: not JSON" in done.stderr

    again = run(*arguments)
    assert again.returncode == 2
    assert "--overwrite" in again.stderr

    told = run(*arguments, "--skip-bad", "--overwrite")
    assert told.stdout == f"{prefix}: 2 documents, 12 tokens (uint16)\nleft out: 1 bad, 1 empty\n"

    (source.parent / "one.txt").write_text("x")
    one = run("data", "prepare", str(source.parent / "one.txt"), *arguments[3:-1], str(source.parent / "one"))
    assert one.stdout == f"{source.parent / 'one'}: 1 document, 1 token (uint16)\n"


def test_an_output_that_cannot_be_is_refused_truthfully(source: Path) -> None:
    arguments = ["data", "prepare", str(source), "--tokenizer", "byte", "--skip-bad", "--output"]
    (source.parent / "folder").mkdir()
    before = sorted(source.parent.iterdir())
    for output, code, hint in (("folder", 2, "folder/corpus"), ("in.jsonl/out", 1, "Nothing was written")):
        done = run(*arguments, str(source.parent / output))
        assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
        assert hint in done.stderr
        assert "is kept" not in done.stderr
    assert sorted(source.parent.iterdir()) == before


def test_training_prints_facts_only(source: Path) -> None:
    source.write_text('{"text": "one two one two"}\n')
    folder = source.parent / "tokenizer"
    done = run("tokenizer", "train", str(source), "--vocab-size", "260", "--output", str(folder), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["vocab_size"] == 260
    assert facts["folder"] == str(folder)
    assert sorted(path.name for path in source.parent.iterdir()) == ["in.jsonl", "tokenizer"]


def test_progress_is_plain_lines_when_not_on_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.transfer_progress("preparing") as report:
        report(500_000, 4_000_000, "3 documents")  # no line: nothing tells how fast it was
        report(1_000_000, 4_000_000, "7 documents")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("preparing: 1.0 of 4.0 MB, ")
    assert "MB/s" in captured.err
    assert captured.err.endswith("s left, 7 documents\n")


def test_progress_is_a_bar_on_a_terminal(source: Path) -> None:
    here, there = pty.openpty()
    arguments = [
        "data",
        "prepare",
        str(source),
        "--tokenizer",
        "byte",
        "--output",
        str(source.parent / "out"),
    ]
    done = subprocess.run(
        [*COMMAND, *arguments, "--skip-bad"],
        stdout=subprocess.PIPE,
        stderr=there,
        env={**os.environ, "COLUMNS": "120", "TERM": "xterm"},
        timeout=50,
        check=True,
    )
    os.close(there)
    shown = os.read(here, 1 << 16).decode()
    os.close(here)
    assert "preparing" in shown
    assert "2 documents" in shown
    assert done.stdout.startswith(f"{source.parent / 'out'}: 2 documents".encode())


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    with progress.transfer_progress("preparing", quiet=True) as report:
        report(1, 2, "")
    assert capsys.readouterr() == ("", "")
