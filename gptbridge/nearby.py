"""What a user may have meant by a path where nothing is."""

from __future__ import annotations

import difflib
from pathlib import Path

from gptbridge.errors import printable


def nearby(path: Path) -> str:
    """Return the next step for someone who named `path`, which does not exist."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return f"There is no folder {printable(path.parent)}"
    close = difflib.get_close_matches(path.name, names, n=1)
    if close:
        return f"Did you mean {printable(path.with_name(close[0]))}?"
    return "Check the path" + ("" if path.is_absolute() else f": it is taken from {Path.cwd()}")
