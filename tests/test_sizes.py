"""No module of the product is longer than 400 lines, no function longer than 40."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("gptbridge", "specs", "cli", "backends")
MODULE, FUNCTION = 400, 40


def too_long(name: str, text: str) -> list[str]:
    """Return what is too long in a module."""
    lines = len(text.splitlines())
    found = [f"{name}: {lines} lines"] if lines > MODULE else []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            found += [f"{name}: {node.name}, {lines} lines"] if lines > FUNCTION else []
    return found


def test_nothing_is_too_long() -> None:
    modules = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
    assert len(modules) > 100
    assert [
        line for path in modules for line in too_long(str(path.relative_to(ROOT)), path.read_text())
    ] == []


def test_what_is_too_long_would_be_seen() -> None:
    body = "def f():\n" + "    x = 1\n" * FUNCTION
    assert too_long("m", body) == [f"m: f, {FUNCTION + 1} lines"]
    assert too_long("m", "x = 1\n" * (MODULE + 1)) == [f"m: {MODULE + 1} lines"]
    assert too_long("m", "x = 1\n" * MODULE) == []
