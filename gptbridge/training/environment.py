"""What a run ran on: the content of environment.json."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path

import numpy as np

import gptbridge
from gptbridge.plugins.backend import Backend
from gptbridge.plugins.finding import framework_version
from gptbridge.session import Device


def describe_environment(backend: Backend, device: Device) -> dict[str, object]:
    """Return versions, device, machine and the commit of this gptbridge, if it is a checkout."""
    return {
        "gptbridge": gptbridge.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "backend": backend.name,
        "framework_version": framework_version(backend.info),
        "device": device.name,
        "device_kind": device.kind,
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
    }


def _commit() -> str | None:
    source = Path(gptbridge.__file__).parent.parent
    if not (source / ".git").exists():
        return None
    try:
        command = ["git", "-C", str(source), "rev-parse", "HEAD"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
