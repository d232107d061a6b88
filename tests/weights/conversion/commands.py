"""The command line in this process, and how a refusal looks."""

from __future__ import annotations

from pathlib import Path

Outcome = tuple[int, str]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def assert_refused(outcome: Outcome, code: int, words: str, folder: Path) -> None:
    """One line with these words, the exit code, and no trace of an output."""
    found, text = outcome
    assert (found, text.count("\n")) == (code, 1), text
    assert text.startswith("error: ")
    assert words in text
    assert text.strip().isprintable()
    assert not [name for name in names(folder) if "out" in name]
