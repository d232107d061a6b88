"""Libraries that only some tokenizers need, from the extra `zh`."""

from __future__ import annotations

import importlib
from typing import Any

from gptbridge.errors import UsageError, from_checkout


def require(module: str, needed_for: str) -> Any:
    """Import `module`, or say how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{needed_for} needs {module}, which is not installed", hint=from_checkout("zh")
        ) from error
