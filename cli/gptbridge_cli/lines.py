"""Lines for a person: what came out of a file or a name moves no cursor and fills no screen."""

from __future__ import annotations

import typer

from gptbridge.errors import printable

LONGEST = 2000  # characters


def say(line: object, *, err: bool = False) -> None:
    """Print one line to stdout or stderr, with control characters escaped."""
    typer.echo(printable(line, LONGEST), err=err)


def warn(message: str) -> None:
    """Print a warning to stderr."""
    say(f"warning: {message}", err=True)


def note(message: str) -> None:
    """Print to stderr what is worth knowing and no reason to worry."""
    say(f"note: {message}", err=True)
