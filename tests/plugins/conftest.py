"""Plugins that exist for one test: real packages on a path of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

WritePlugin = Callable[..., None]
Gptbridge = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def write_plugin(tmp_path: Path) -> WritePlugin:
    """Return a function that installs a plugin package into the test's own path."""

    def write(name: str, source: str, *, group: str = "gptbridge.backends", package: str = "") -> None:
        module = "plugin_" + name.replace(":", "_")
        (tmp_path / f"{module}.py").write_text(source)
        package = package or f"gptbridge-{name.replace(':', '-')}"
        info = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")

    return write


@pytest.fixture
def gptbridge(tmp_path: Path) -> Gptbridge:
    """Return a function that runs the `gptbridge` command, or Python code, where the test's plugins are."""

    def run(*arguments: str, code: str = "", timeout: float = 120) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        start = code or "from gptbridge_cli.main import main; main()"
        return subprocess.run(
            [sys.executable, "-c", start, *arguments],
            env={**os.environ, "PYTHONPATH": path},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
