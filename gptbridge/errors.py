"""Everything that gptbridge tells a user has gone wrong.

Each error is one line: where, what, what is allowed, what to do next. The command line prints
it and leaves with `exit_code`; a traceback is shown only with `--debug`.
"""

from __future__ import annotations

import os


def printable(name: object, limit: int = 200) -> str:
    """Return `name` with control characters escaped and cut to `limit` characters.

    Names come from files that strangers made: none may move the cursor or fill the screen.
    """
    text = str(name)
    escaped = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[: limit + 1])
    return escaped if len(escaped) <= limit else escaped[: limit - 3] + "..."


def from_checkout(extra: str) -> str:
    """Return the next step for somebody who lacks an extra: no index has this package."""
    return f"In a checkout of gptbridge, run: pip install -e '.[{extra}]'"


class BridgeError(Exception):
    """An error with a cause that the user can mend.

    `where` is the file or field, `allowed` what would be accepted, `hint` the next step.
    """

    exit_code = 1

    def __init__(
        self,
        problem: str,
        *,
        where: object = None,
        allowed: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.where = where
        self.allowed = allowed
        self.hint = hint

    def __str__(self) -> str:
        line = self.problem if self.where is None else f"{printable(self.where)}: {self.problem}"
        if self.allowed:
            line += f" (allowed: {self.allowed})"
        return f"{line}. {self.hint}" if self.hint else line


class RunFailed(BridgeError):
    """The run itself failed: disk full, parity beyond tolerance, no finite loss."""

    exit_code = 1


class UsageError(BridgeError):
    """The command or the spec asks for something that cannot be."""

    exit_code = 2


def require_posix() -> None:
    """Raise UsageError on another system, before an import fails that only POSIX has."""
    if os.name != "posix":
        raise UsageError(
            "gptbridge runs on Linux and macOS, not on this system: it needs POSIX (fcntl)",
            hint="WSL 2 is Linux",
        )


class BackendMissing(BridgeError):
    """The backend is not known, or its framework is not installed."""

    exit_code = 3


class BackendBroken(BridgeError):
    """The backend's plugin or its framework does not load, or speaks another API."""

    exit_code = 4


class DialectBroken(BridgeError):
    """A dialect's module does not load, or two packages register it."""

    exit_code = 4


class BadInput(BridgeError):
    """A file is missing, damaged, malicious or not what it claims to be."""

    exit_code = 5


class Interrupted(BridgeError):
    """A signal ended the run after its checkpoint was saved, or before there was anything to save.

    129 for SIGHUP, 130 for SIGINT, 143 for SIGTERM.
    """

    def __init__(self, problem: str, *, exit_code: int) -> None:
        super().__init__(problem)
        self.exit_code = exit_code
