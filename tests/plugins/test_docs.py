"""docs/plugins.md names every hook and session method with its arguments, and no other."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

from gptbridge import hookspecs
from gptbridge.session import Session

TEXT = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()


def signatures(owner: object, prefix: str) -> set[str]:
    """Return `name(argument, ...)` of each function of `owner`."""
    functions = [f for name, f in vars(owner).items() if inspect.isfunction(f) and re.match(prefix, name)]
    parameters = [
        (f.__name__, [p for p in inspect.signature(f).parameters if p != "self"]) for f in functions
    ]
    return {f"{name}({', '.join(names)})" for name, names in parameters}


def rows(heading: str) -> set[str]:
    """Return the first cells of the table under `heading`."""
    section = TEXT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE))


def test_every_hook_is_described() -> None:
    assert rows("Hooks") == signatures(hookspecs, "gptbridge_")


def test_every_session_method_is_described() -> None:
    assert rows("The session") == signatures(Session, "[a-z]")
