"""Run the test files of each framework in a process of their own (see conftest.py)."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.timeout(900)
@pytest.mark.parametrize("framework", ["torch", "paddle", "mindspore"])
def test_framework_files_pass(framework: str, pytestconfig: pytest.Config) -> None:
    if importlib.util.find_spec(framework) is None:
        pytest.skip(f"{framework} is not installed")
    files = sorted(HERE.glob(f"test_{framework}_*.py"))
    assert files, f"no tests/backends/test_{framework}_*.py"
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, files)],
        cwd=pytestconfig.rootpath,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=880,
    )
    assert run.returncode == 0, f"tests of {framework}, exit code {run.returncode}:\n{run.stdout[-8000:]}"
