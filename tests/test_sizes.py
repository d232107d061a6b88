"""No module is longer than 400 lines, no function of the product longer than 40."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
PRODUCT = ("gptbridge", "specs", "cli", "backends")
BESIDE = ("tests", "benchmarks", "examples", "docs")
MODULE, FUNCTION = 400, 40


def too_long(name: str, text: str, *, product: bool = True) -> list[str]:
    """Return what is too long in a module."""
    lines = len(text.splitlines())
    found = [f"{name}: {lines} lines"] if lines > MODULE else []
    for node in ast.walk(ast.parse(text)) if product else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            found += [f"{name}: {node.name}, {lines} lines"] if lines > FUNCTION else []
    return found


def test_nothing_is_too_long() -> None:
    found = []
    for room in (*PRODUCT, *BESIDE):
        modules = sorted((ROOT / room).rglob("*.py"))
        assert modules, room
        for path in modules:
            name = str(path.relative_to(ROOT))
            found += too_long(name, path.read_text(), product=room in PRODUCT)
    assert found == []


def test_what_is_too_long_would_be_seen() -> None:
    body = "def f():\n" + "    x = 1\n" * FUNCTION
    assert too_long("m", body) == [f"m: f, {FUNCTION + 1} lines"]
    assert too_long("m", "x = 1\n" * (MODULE + 1)) == [f"m: {MODULE + 1} lines"]
    assert too_long("m", "x = 1\n" * MODULE) == []
    assert too_long("t", body, product=False) == []
    assert too_long("t", "x = 1\n" * (MODULE + 1), product=False) == [f"t: {MODULE + 1} lines"]
