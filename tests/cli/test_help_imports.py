"""Help is quick: no command's --help imports a framework, NumPy or pydantic."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "paddle", "mindspore", "numpy", "pydantic", "safetensors", "pluggy", "yaml")

# Runs one command line, then fails if anything of HEAVY is imported.
CODE = f"""
import sys
from gptbridge_cli.main import main
try:
    main()
except SystemExit as end:
    if end.code:
        raise
found = [name for name in {HEAVY!r} if name in sys.modules]
if found:
    sys.exit("imported: " + ", ".join(found))
"""


def command_lines() -> list[tuple[str, ...]]:
    """Return the path of every command and group, () for `gptbridge` itself."""
    from typer.main import get_command

    from gptbridge_cli.main import app

    def walk(command: object, path: tuple[str, ...]) -> list[tuple[str, ...]]:
        children = getattr(command, "commands", {})
        return [path, *(line for name in children for line in walk(children[name], (*path, name)))]

    return walk(get_command(app), ())


@pytest.mark.parametrize("words", command_lines(), ids=lambda words: " ".join(words) or "gptbridge")
def test_help_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-c", CODE, *words, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "Usage:" in result.stdout


def test_the_check_notices_an_import() -> None:
    command = [sys.executable, "-c", "import numpy\n" + CODE, "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert "imported: numpy" in result.stderr


@pytest.mark.parametrize(
    "code", ["from gptbridge_cli.main import main; main()", "from gptbridge import train"]
)
def test_another_system_is_told_at_once(code: str) -> None:
    """What names a system is imported before it is another one: pathlib would be Windows' own."""
    other = f"import os, pathlib, sys, typer; sys.modules['fcntl'] = None; os.name = 'nt'; {code}"
    done = subprocess.run(
        [sys.executable, "-c", other], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode in (1, 2)
    assert "gptbridge runs on Linux and macOS" in done.stderr.splitlines()[-1]
    assert "WSL 2" in done.stderr
