"""Libraries that only some need, from an extra of the package."""

from __future__ import annotations

import importlib
from typing import Any

from gptbridge.errors import UsageError, from_checkout


def require(module: str, needed_for: str, *, extra: str = "zh") -> Any:
    """Import `module`, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{needed_for} needs {module}, which is not installed", hint=from_checkout(extra)
        ) from error
