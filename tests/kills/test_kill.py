"""The killer kills, and sees what a command loses."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kills.kill import Job, files_in, kill

# Writes a file of two lines, slowly: at once under its name, or beside it first.
SLOW = """
import os, sys, time
name, careful = sys.argv[1], sys.argv[2] == "careful"
with open(name + ".partial" if careful else name, "w") as file:
    for line in ("one", "two"):
        print(line, file=file, flush=True)
        time.sleep(0.2)
if careful:
    os.replace(name + ".partial", name)
"""


def slow(how: str) -> Job:
    def look(folder: Path) -> int:
        out = folder / "out"
        assert not out.exists() or out.read_text() == "one\ntwo\n", "half an output"
        return 0

    begins = "out.partial" if how == "careful" else "out"
    words = [sys.executable, "-c", SLOW]
    return Job(lambda folder: [*words, str(folder / "out"), how], begins, files_in, look)


def test_what_appears_whole_loses_nothing(tmp_path: Path) -> None:
    report = kill("careful", slow("careful"), tmp_path, 3)
    assert report.kills >= 3
    assert not report.lost


def test_half_an_output_is_seen(tmp_path: Path) -> None:
    report = kill("careless", slow("careless"), tmp_path, 3)
    assert report.lost
    assert "half an output" in report.lost[0]


def test_another_result_is_seen(tmp_path: Path) -> None:
    draws = iter(range(100))
    report = kill("other", replace(slow("careful"), result=lambda folder: next(draws)), tmp_path, 1)
    assert "another than without kills" in report.lost[0]


def test_a_command_that_fails_is_seen(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="careless"):
        kill(
            "fails", replace(slow("careful"), words=lambda folder: [sys.executable, "careless"]), tmp_path, 1
        )
