"""Lines for a person: what came out of a file or a name moves no cursor and fills no screen."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import wrap

import typer

from gptbridge.errors import printable

LONGEST = 2000  # characters


def say(line: object, *, err: bool = False) -> None:
    """Print one line to stdout or stderr, with control characters escaped."""
    typer.echo(printable(line, LONGEST), err=err)


def facts(found: Mapping[str, object], indent: str = "") -> None:
    """Print a name and a value a line; a mapping's own, further in."""
    for name, value in found.items():
        title = f"{indent}{name.replace('_', ' ')}"
        if isinstance(value, Mapping):
            say(title)
            facts(value, indent + "  ")
        else:
            say(f"{title:18} {value}" if not indent else f"{title:30} {value}")


def paragraph(text: str, indent: str) -> None:
    """Print a text in lines of 80 columns, each after `indent`."""
    for line in wrap(text, 80, initial_indent=indent, subsequent_indent=indent):
        say(line)


def warn(message: str) -> None:
    """Print a warning to stderr."""
    say(f"warning: {message}", err=True)


def note(message: str) -> None:
    """Print to stderr what is worth knowing and no reason to worry."""
    say(f"note: {message}", err=True)
