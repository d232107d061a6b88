"""What is wrong with a spec: every problem at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class SpecError(Exception):
    """A spec that cannot be used. `problems` holds one line for each thing to mend."""

    exit_code = 2

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(map(_one_line, problems))
        super().__init__("\n".join(self.problems))


def _one_line(problem: str) -> str:
    """Return `problem` with what a stranger's key or value may hold to move the cursor escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in problem)


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return " Did you mean X?" for the nearest known name, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {near[0]}?" if near else ""
