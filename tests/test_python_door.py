"""The Python door: what docs/python.md and the README show runs, in any order of imports."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import gptbridge
from tests.training.conftest import ENVIRONMENT

ROOT = Path(__file__).parents[1]
NAMES = [name for name in gptbridge.__all__ if name != "__version__"]


def blocks(page: str) -> list[str]:
    """Return the Python code of a page, block by block."""
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error::UserWarning:gptbridge", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, cwd=folder, env=ENVIRONMENT)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("page", "count"), [("docs/python.md", 5), ("README.md", 1)])
def test_what_a_page_shows_runs(page: str, count: int, tmp_path: Path) -> None:
    found = blocks(page)
    assert len(found) == count
    done = python("\n".join(found), tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "same logits" in done.stdout


def test_a_notebook_trains_samples_and_converts_in_ten_lines() -> None:
    first = blocks("docs/python.md")[0]
    assert len([line for line in first.splitlines() if line]) <= 10
    assert all(f" {name}(" in first or f"({name}(" in first for name in ("train", "generate", "convert"))


def test_the_page_names_every_function_and_no_other() -> None:
    listed = re.findall(r"^\| `(\w+)\(", (ROOT / "docs/python.md").read_text(), re.MULTILINE)
    assert set(listed) == {name for name in NAMES if inspect.isfunction(getattr(gptbridge, name))}


@pytest.mark.parametrize("first", ["gptbridge.comparing", "gptbridge.api", "gptbridge.training.run"])
def test_a_name_is_the_function_whatever_was_imported_before(first: str, tmp_path: Path) -> None:
    names = ", ".join(NAMES)
    code = f"import {first}\nfrom gptbridge import {names}\nprint(*(callable(x) for x in ({names})))"
    done = python(code, tmp_path)
    assert done.stdout.split() == ["True"] * len(NAMES), done.stderr
    assert not list((ROOT / "gptbridge").glob("parity*")), "a module of that name would hide the function"


def test_importing_the_package_imports_nothing_else(tmp_path: Path) -> None:
    code = "import sys, gptbridge; print([n for n in ('numpy', 'pydantic', 'torch') if n in sys.modules])"
    assert python(code, tmp_path).stdout == "[]\n"
    assert python(code.replace("; print", "; gptbridge.RunSpec; print"), tmp_path).stdout != "[]\n"


def test_an_unknown_word_is_refused(tmp_path: Path) -> None:
    for name, arguments in (("inspect", (tmp_path,)), ("generate", (tmp_path, "a"))):
        with pytest.raises(TypeError, match="heads"):
            getattr(gptbridge, name)(*arguments, heads=3)
