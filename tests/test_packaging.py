"""The wheel holds every package, every preset and the entry points."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


def test_every_room_of_tests_is_collected() -> None:
    rooms = {path for path in (ROOT / "tests").iterdir() if path.is_dir() and any(path.rglob("test_*.py"))}
    found = {str(path.relative_to(ROOT)) for path in (*rooms, *(ROOT / "tests").glob("test_*.py"))}
    assert set(PROJECT["tool"]["pytest"]["ini_options"]["testpaths"]) == found


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


# Where a package's module is called otherwise.
MODULES = {
    "pyyaml": "yaml",
    "backports-zstd": "backports",
    "scikit-learn": "sklearn",
    "rouge-score": "rouge_score",
}


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    extras = [
        text for name, texts in project["optional-dependencies"].items() if name != "all" for text in texts
    ]
    return [Requirement(text) for text in [*project["dependencies"], *extras]]


def test_every_dependency_is_imported() -> None:
    sources = [path for package in LISTED for path in (ROOT / package).rglob("*.py")]
    text = "\n".join(path.read_text() for path in sources)
    for requirement in requirements():
        name = canonicalize_name(requirement.name)
        module = {"paddlepaddle": "paddle"}.get(name, MODULES.get(name, requirement.name))
        assert re.search(rf"^ *(import|from) {module}\b|[\"(]{module}[\".]", text, re.MULTILINE), requirement
    assert not re.search(r"^ *(import|from) safetensors\b", text, re.MULTILINE)


def test_what_is_not_yet_stable_has_a_ceiling() -> None:
    checked = 0
    for requirement in [*requirements(), *map(Requirement, PROJECT["dependency-groups"]["dev"])]:
        with suppress(importlib.metadata.PackageNotFoundError):
            zero = importlib.metadata.version(requirement.name).startswith("0.")
            assert not zero or any(one.operator == "<" for one in requirement.specifier), requirement
            checked += zero
    assert checked > 3


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_says_in_one_line_which_python_it_lacks(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for python in ("no-such-python", "false"):
        command = ["make", "--no-print-directory", ".venv/made", f"PYTHON={python}"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode != 0
        (line,) = done.stdout.splitlines()
        assert "needs Python 3.11 to 3.14" in line
        assert python in line
        assert not (tmp_path / ".venv").exists()
