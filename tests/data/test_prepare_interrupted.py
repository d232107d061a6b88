"""Whatever interrupts a preparation, the same command completes it with the same bytes."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptbridge.data import partial
from gptbridge.data.blocks import PlainTexts, Position, read_blocks
from gptbridge.data.partial import _sealed
from gptbridge.data.prepare import TextOptions, prepare
from gptbridge.data.sources import find_sources
from gptbridge.errors import BadInput, RunFailed, UsageError
from tests.conftest import Spawn

pytestmark = pytest.mark.timeout(120)

OPTIONS = TextOptions(append_end_of_text=True)

# Commits every few thousand tokens, so that a small input has many; goes slowly, so that it is hit.
COMMAND = """
import sys, time
from gptbridge.data import prepare, sources
from gptbridge_cli.main import main
prepare.COMMIT_TOKENS = 20_000
sources.CHUNK = 4096
read = sources.SourceStream.read
def slowly(stream):
    time.sleep({pause})
    return read(stream)
sources.SourceStream.read = slowly
sys.argv = ["gptbridge", "data", "prepare", *sys.argv[1:]]
main()
"""


def command(*arguments: str, pause: float) -> list[str]:
    script = COMMAND.format(pause=pause)
    return [sys.executable, "-c", script, *arguments, "--tokenizer", "byte", "--append-eos", "--quiet"]


@pytest.fixture
def start(spawn: Spawn) -> Spawn:
    """Return a function that starts a preparation."""
    return lambda *arguments, pause: spawn(command(*arguments, pause=pause))


def committed(partial: Path) -> int:
    journal = partial / "journal.jsonl"
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_for_commits(partial: Path, count: int, process: subprocess.Popen[str]) -> None:
    while committed(partial) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def dataset(prefix: Path) -> dict[str, bytes]:
    return {name: Path(f"{prefix}.{name}").read_bytes() for name in ("bin", "idx", "json")}


@pytest.fixture
def inputs(tmp_path: Path) -> list[str]:
    draw = random.Random(3)
    text = (Path(json.__file__).parent / "decoder.py").read_text()
    names = []
    for i, name in enumerate(("a.jsonl", "b.jsonl.gz", "c.txt")):
        lines = [json.dumps({"text": text[k : k + draw.randrange(2000)]}) for k in range(0, len(text), 50)]
        data = "\n".join(lines if i < 2 else text.splitlines() * 10).encode()
        path = tmp_path / name
        if name.endswith(".gz"):
            data = gzip.compress(data)
        path.write_bytes(data)
        names.append(str(path))
    return names


@pytest.fixture
def expected(inputs: list[str], tmp_path: Path) -> dict[str, bytes]:
    prepare(inputs, "byte", tmp_path / "whole", OPTIONS)
    return dataset(tmp_path / "whole")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_kill_9_at_any_moment(
    inputs: list[str], expected: dict[str, bytes], tmp_path: Path, workers: str, start: Spawn
) -> None:
    prefix, partial = tmp_path / "out", tmp_path / "out.partial"
    arguments = [*inputs, "--output", str(prefix), "--workers", workers]
    for commits in (1, 9):
        process = start(*arguments, pause=0.004)
        wait_for_commits(partial, commits, process)
        time.sleep(random.Random(commits).random() * 0.05)
        process.kill()
        process.wait()
        assert not list(tmp_path.glob("out.*[nx]")), "a half dataset has its name"
        assert committed(partial) >= commits, "what was done is lost"
    process = start(*arguments, pause=0)
    assert process.wait(60) == 0, process.communicate()
    assert dataset(prefix) == expected
    assert not partial.exists()


def test_workers_do_not_outlive_a_killed_parent(inputs: list[str], tmp_path: Path, start: Spawn) -> None:
    process = start(*inputs, "--output", str(tmp_path / "out"), "--workers", "2", pause=0.01)
    wait_for_commits(tmp_path / "out.partial", 1, process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_stops_after_saving(
    inputs: list[str],
    expected: dict[str, bytes],
    tmp_path: Path,
    number: signal.Signals,
    exit_code: int,
    start: Spawn,
    signals_count: None,
) -> None:
    arguments = [*inputs, "--output", str(tmp_path / "out")]
    process = start(*arguments, pause=0.004)
    wait_for_commits(tmp_path / "out.partial", 1, process)
    process.send_signal(number)
    _, message = process.communicate(timeout=30)
    assert process.returncode == exit_code
    assert "run the same command again" in message
    assert "Traceback" not in message
    before = committed(tmp_path / "out.partial")
    assert before >= 1
    process = start(*arguments, pause=0)
    assert process.wait(60) == 0
    assert dataset(tmp_path / "out") == expected


class Stopped(Exception):
    pass


def leave_unfinished(inputs: list[str], prefix: Path) -> None:
    """Prepare in this process until a few commits are made, and stop short."""

    def stop_late(consumed: int, total: int, documents: int) -> None:
        if committed(Path(f"{prefix}.partial")) >= 6:
            raise Stopped

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptbridge.data.prepare.COMMIT_TOKENS", 20_000)
        patch.setattr("gptbridge.data.sources.CHUNK", 4096)
        with pytest.raises(Stopped):
            prepare(inputs, "byte", prefix, OPTIONS, on_progress=stop_late)


@pytest.mark.parametrize("file", ["tokens.bin", "lengths.bin", "journal.jsonl"])
@pytest.mark.parametrize("damage", ["flip", "cut", "zeros", "longer", "gone"])
def test_damage_to_what_was_kept_is_noticed(
    inputs: list[str], expected: dict[str, bytes], tmp_path: Path, file: str, damage: str
) -> None:
    leave_unfinished(inputs, tmp_path / "out")
    path = tmp_path / "out.partial" / file
    data = path.read_bytes()
    middle = len(data) // 2
    flipped = data[:middle] + bytes([data[middle] ^ 0x04]) + data[middle + 1 :]
    edited: dict[str, bytes] = {
        "flip": flipped,
        "cut": data[:middle],
        "zeros": data[:middle] + bytes(300),
        "longer": data + b"{]" * 99,
        "gone": b"",
    }
    path.write_bytes(edited[damage])
    prepare(inputs, "byte", tmp_path / "out", OPTIONS)
    assert dataset(tmp_path / "out") == expected


@pytest.mark.parametrize(
    "entry",
    [
        {},
        [1],
        {"counts": [1], "position": [0, 0, 1], "crc32": [0, 0]},
        {"counts": [-9, -9, 0], "position": [0, 0, 1], "problems": {}, "digests": [], "crc32": [0, 0]},
        {"counts": [0, 0, 0], "position": [0, -5, 1], "problems": {}, "digests": [], "crc32": [0, 0]},
        {"counts": [0, 0, 0], "position": [1 << 70, 0, 1], "problems": {}, "digests": [], "crc32": [0, 0]},
        {"counts": [0, 0, 0], "position": [0, 0.5, 1], "problems": {}, "digests": [], "crc32": [0, 0]},
        {"counts": [0, 0, 0], "position": [0, 0, 1], "problems": {"x": "y"}, "digests": [], "crc32": [0, 0]},
        {"counts": [0, 0, 0], "position": [1, 0, 1], "problems": {}, "digests": [5], "crc32": [0, 0]},
        {"counts": [0, 0, 0], "position": [0, 0, 1], "problems": {}, "digests": ["x"], "crc32": [0, 0]},
    ],
)
def test_a_sealed_line_that_says_something_else_is_cut_off(
    inputs: list[str], expected: dict[str, bytes], tmp_path: Path, entry: object
) -> None:
    leave_unfinished(inputs, tmp_path / "out")
    (tmp_path / "out.partial" / "journal.jsonl").write_bytes(_sealed(json.dumps(entry).encode()))
    prepare(inputs, "byte", tmp_path / "out", OPTIONS)
    assert dataset(tmp_path / "out") == expected


def test_a_journal_of_one_endless_line_costs_no_memory(
    inputs: list[str], expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partial, "_LINE_LIMIT", 1 << 20)
    leave_unfinished(inputs, tmp_path / "out")
    os.truncate(tmp_path / "out.partial" / "journal.jsonl", 1 << 40)
    prepare(inputs, "byte", tmp_path / "out", OPTIONS)
    assert dataset(tmp_path / "out") == expected


def test_a_folder_that_is_renamed_meanwhile_is_left_to_whom_it_belongs(
    inputs: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "out.partial"

    def replace(*progress: int) -> None:
        if not (tmp_path / "moved").exists():
            folder.rename(tmp_path / "moved")
            folder.mkdir()

    with pytest.raises(RunFailed, match=r"out\.partial: was renamed or removed"):
        prepare(inputs, "byte", tmp_path / "out", OPTIONS, on_progress=replace)
    assert not any(folder.iterdir())


def test_what_was_kept_is_not_done_again(inputs: list[str], tmp_path: Path) -> None:
    leave_unfinished(inputs, tmp_path / "out")
    kept = (tmp_path / "out.partial" / "lengths.bin").stat().st_size // 4
    seen: list[int] = []
    prepare(inputs, "byte", tmp_path / "out", OPTIONS, on_progress=lambda *now: seen.append(now[2]))
    assert seen[0] >= kept > 100


def test_another_plan_starts_over(inputs: list[str], expected: dict[str, bytes], tmp_path: Path) -> None:
    leave_unfinished(inputs[::-1], tmp_path / "out")
    prepare(inputs, "byte", tmp_path / "out", OPTIONS)
    assert dataset(tmp_path / "out") == expected


def test_two_cannot_prepare_the_same_dataset(inputs: list[str], tmp_path: Path, start: Spawn) -> None:
    process = start(*inputs, "--output", str(tmp_path / "out"), pause=0.02)
    wait_for_commits(tmp_path / "out.partial", 1, process)
    with pytest.raises(UsageError, match="another process is preparing"):
        prepare(inputs, "byte", tmp_path / "out")


def test_a_full_disk_is_one_line_and_what_is_done_is_kept(
    inputs: list[str], expected: dict[str, bytes], tmp_path: Path, start: Spawn
) -> None:
    arguments = [*inputs, "--output", str(tmp_path / "out")]
    script = 'ulimit -f 200; trap \'\' XFSZ; exec "$0" "$@"'  # files of 200 blocks and no more
    limited = subprocess.run(
        ["bash", "-c", script, *command(*arguments, pause=0)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert limited.returncode == 1
    assert limited.stderr.count("\n") == 1
    assert "cannot write the dataset" in limited.stderr
    assert committed(tmp_path / "out.partial") >= 1
    process = start(*arguments, pause=0)
    assert process.wait(60) == 0
    assert dataset(tmp_path / "out") == expected


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_named(inputs: list[str], tmp_path: Path) -> None:
    (tmp_path / "read-only").mkdir(mode=0o500)
    with pytest.raises(RunFailed, match="read-only"):
        prepare(inputs, "byte", tmp_path / "read-only" / "out")


def test_output_below_a_file_is_one_line(inputs: list[str]) -> None:
    with pytest.raises(RunFailed, match="cannot write the dataset"):
        prepare(inputs, "byte", Path(inputs[0]) / "out")


def test_an_input_that_vanished_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"gone\.txt"):
        prepare([str(tmp_path / "gone.txt")], "byte", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_text_that_was_read_whole_has_no_second_document(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one")
    (source,) = find_sources([str(tmp_path / "a.txt")]).sources
    blocks = [*read_blocks([source], Position(0), json_key="text", separator=None)][:-1]
    assert sum(len(block.payload.texts) for block in blocks if isinstance(block.payload, PlainTexts)) == 1
    rest = read_blocks([source], blocks[-1].end, json_key="text", separator=None)
    assert all(block.payload == PlainTexts(()) for block in rest)
