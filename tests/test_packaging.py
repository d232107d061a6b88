"""The wheel holds every package, every preset and the entry points."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LISTED = set(PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"])


def test_every_package_is_listed() -> None:
    inner = {
        str(init.parent.relative_to(ROOT))
        for folder in ("specs", "cli", "backends")
        for init in (ROOT / folder).glob("*/__init__.py")
    }
    assert {"gptbridge"} | inner == LISTED


@pytest.mark.timeout(120)
def test_wheel_is_complete(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(tmp_path), str(ROOT)], check=True, capture_output=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (entry_points,) = (name for name in names if name.endswith("entry_points.txt"))
        text = archive.read(entry_points).decode()
    for package in LISTED:
        folder = ROOT / package
        expected = {
            str(path.relative_to(folder.parent))
            for path in folder.rglob("*")
            if path.suffix in (".py", ".yaml", ".typed") and "__pycache__" not in path.parts
        }
        assert expected
        assert expected <= names
    for name in ("torch", "paddle", "mindspore"):
        assert f"{name} = gptbridge_{name}.plugin" in text
    for name in (
        "torch = gptbridge.weights.dialects.huggingface",
        "fleetx = gptbridge.weights.dialects.fleetx",
    ):
        assert f"{name}:DIALECT" in text
    assert "gptbridge = gptbridge_cli.main:main" in text
