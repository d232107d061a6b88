"""Plugins that exist for one test: real packages on a path of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import COMMAND

WritePlugin = Callable[..., None]
Gptbridge = Callable[..., "subprocess.CompletedProcess[str]"]

# A backend that loads; tests change a line of it.
TOY = """
from gptbridge.hookspecs import BackendInfo, Problem, hookimpl

INFO = dict(name="toy", title="Toy", requires=(), modules=(), hardware=("cpu",), install="pip install toy")

@hookimpl
def gptbridge_backend_info():
    return BackendInfo(**INFO)

@hookimpl
def gptbridge_setup_hardware(spec):
    from gptbridge.session import Device
    return Device("cpu", "toy cpu", None)
"""


@pytest.fixture(autouse=True)
def _no_framework_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide frameworks that other rooms opened: a process that has one refuses every other backend."""
    for name in ("torch", "paddle", "mindspore"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.fixture
def write_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WritePlugin:
    """Return a function that installs a plugin package where this process and its children see it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    def write(name: str, source: str, *, group: str = "gptbridge.backends", package: str = "") -> None:
        package = package or f"gptbridge-{name.replace(':', '-')}"
        # A name of its own for each test: a module stays imported when its test ends.
        module = f"{package}_{tmp_path.name}".replace("-", "_")
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{package.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")

    return write


@pytest.fixture
def gptbridge(tmp_path: Path) -> Gptbridge:
    """Return a function that runs the `gptbridge` command."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*COMMAND, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=120
        )

    return run
