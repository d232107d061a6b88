"""Preparation stays below 300 MB, whatever lies in the input."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from backports import zstd

from gptbridge.data.tokenizers.training import train_tokenizer

pytestmark = pytest.mark.timeout(120)

LIMIT_MB = 300

# VmHWM is the most that the process itself ever held, whatever started it.
COMMAND = """
import sys
from pathlib import Path
from gptbridge_cli.main import main
try:
    main()
finally:
    status = Path("/proc/self/status").read_text()
    print("peak", next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")))
"""


def peak_megabytes(source: Path, tokenizer: str, *, exit_code: int) -> float:
    options = ["--tokenizer", tokenizer, "--output", str(source.parent / "out"), "--quiet", "--overwrite"]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "data", "prepare", str(source), *options],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == exit_code, done.stderr
    return int(done.stdout.split()[-1]) / 1000


@pytest.fixture(scope="module")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bpe")
    train_tokenizer([str(write_documents(folder / "in.jsonl"))], 500, folder / "trained")
    return str(folder / "trained")


def write_documents(path: Path) -> Path:
    text = (Path(json.__file__).parent / "decoder.py").read_text()
    path.write_text(json.dumps({"text": text}) + "\n")
    return path


def pieces(kind: str) -> Iterator[bytes]:
    draw = random.Random(1)
    if kind == "a line of 64 MB":
        yield b'{"text": "'
        yield from (b"word and " * 120_000 for _ in range(64))
        yield b'"}\n'
    elif kind == "a document of 16 MB, 4 bytes a character":
        yield b'{"text": "' + "\U0001f600 some words ".encode() * ((16 << 20) // 17 - 10) + b'"}\n'
    elif kind == "4 million characters without a space":
        yield b'{"text": "' + b"x" * ((4 << 20) - 20) + b'"}\n'
    elif kind == "many documents of a word":
        yield b'{"text": "word"}\n' * 200_000
    elif kind == "10 MB of words that never come again":
        for _ in range(10):
            words = (f"{draw.getrandbits(64):x}" for _ in range(60_000))
            yield b'{"text": "' + " ".join(words).encode() + b'"}\n'


@pytest.mark.parametrize(
    ("kind", "exit_code"),
    [
        ("a line of 64 MB", 5),
        ("a document of 16 MB, 4 bytes a character", 0),
        ("4 million characters without a space", 0),
        ("many documents of a word", 0),
        ("10 MB of words that never come again", 0),
    ],
)
def test_memory_is_bounded(tmp_path: Path, bpe_folder: str, kind: str, exit_code: int) -> None:
    source = tmp_path / "in.jsonl"
    with source.open("wb") as file:
        file.writelines(pieces(kind))
    assert peak_megabytes(source, bpe_folder, exit_code=exit_code) < LIMIT_MB


@pytest.mark.parametrize(
    ("line", "exit_code"), [(b"\0", 5), (b'{"text": "' + b"word " * 9000 + b'"}\n', 0)], ids=["zeros", "text"]
)
def test_a_bomb_costs_no_memory(tmp_path: Path, line: bytes, exit_code: int) -> None:
    source = tmp_path / "in.jsonl.zst"
    block = line * (200_000 // len(line))
    with zstd.open(source, "wb") as file:
        file.writelines(block for _ in range(400))
    assert source.stat().st_size < 200_000
    assert peak_megabytes(source, "byte", exit_code=exit_code) < LIMIT_MB
