"""An environment that sees this one's packages and has a project installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from pathlib import Path

EXAMPLES = Path(__file__).parents[2] / "examples"


def environment_with(project: Path, folder: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs Python there, in `folder`, which holds the project as `source`."""
    folder.mkdir(exist_ok=True)
    shutil.copytree(project, folder / "source")
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    executable = folder / "venv" / "bin" / "python"
    (site_packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    outer = sysconfig.get_path("purelib")
    (site_packages / "outer.pth").write_text(f"import site; site.addsitedir({outer!r})\n")

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [str(executable), *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=200)

    options = ["--no-index", "--no-deps", "--no-build-isolation", "--quiet", "--disable-pip-version-check"]
    install = [sys.executable, "-m", "pip", "--python", str(executable), "install", *options, "./source"]
    pip = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=200)
    assert pip.returncode == 0, pip.stderr
    return run
