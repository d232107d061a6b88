"""The arguments of a command in a shell script or a list: read, never run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptbridge_specs.errors import SpecError
from gptbridge_specs.yaml_files import MAX_BYTES, read_text

_ASSIGNED = re.compile(r"(?:export\s+|declare\s+(?:-\w+\s+)*|local\s+)?([A-Za-z_]\w*)(\+?)=(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*|\d+)(?:\[[@*]\])?(:?-([^{}]*))?\}|([A-Za-z_]\w*|\d))")
_ARRAY = re.compile(r"(?:export\s+)?[A-Za-z_]\w*\+?=\(")
_FLAG = re.compile(r"--?[A-Za-z]")
_MAX_DEPTH = 20  # variables that name each other
_OPEN = "\0"  # around what a word lacks


@dataclass(frozen=True)
class Arguments:
    """What follows the program, and what its launcher was given; a flag without a value is True."""

    program: str
    flags: Mapping[str, Any]
    launcher: Mapping[str, Any] = field(default_factory=dict)


def read_arguments(path: Path, variables: Mapping[str, str]) -> Arguments:
    """Return the arguments of the one training command in a file; `variables` win over the script's own.

    Literals, NAME=..., arrays and ${NAME:-default} are put in. SpecError for what only a shell could tell.
    """
    text = read_text(path, "list of arguments")
    words, program, launcher = _command(_statements(text), path, variables)
    try:
        return Arguments(program, _flags(words), _flags(launcher))
    except SpecError as error:
        raise SpecError([f"{path}: {problem}" for problem in error.problems]) from error


def _statements(text: str) -> Iterator[str]:
    """Yield the script's statements, each in one line, an array with all of its lines; without comments."""
    waiting: list[str] = []
    quoted = array = False
    for raw in text.replace("\r\n", "\n").replace("\\\n", " ").splitlines():
        line = _without_comment(raw).strip()
        array = array or (not waiting and bool(_ARRAY.match(line)))
        quoted ^= bool(line.count('"') % 2)
        if line:
            waiting.append(line)
        if waiting and not quoted and not (array and not line.endswith(")")):
            yield " ".join(waiting)
            waiting, array = [], False
    if waiting:
        yield " ".join(waiting)


def _without_comment(line: str) -> str:
    quote = ""
    for at, letter in enumerate(line):
        if letter in "\"'" and quote in ("", letter):
            quote = "" if quote else letter
        if letter == "#" and not quote and (at == 0 or line[at - 1].isspace()):
            return line[:at]
    return line


def _command(
    statements: Iterator[str], path: Path, given: Mapping[str, str]
) -> tuple[list[str], str, list[str]]:
    """Return the words after the program, the program, and those before it."""
    variables: dict[str, str] = {}
    commands: list[str] = []
    for statement in statements:
        assigned = _ASSIGNED.fullmatch(statement)
        value = assigned[3].strip() if assigned else ""
        before_a_command = value[:1] not in ("(", '"', "'", "$") and len(value.split()) > 1
        if assigned and not before_a_command:
            name, more = assigned[1], assigned[2]
            value = value[1:-1] if value[:1] in "(\"'" and value[-1:] in ")\"'" and len(value) > 1 else value
            variables[name] = f"{variables.get(name, '')} {value}".strip() if more else value
        else:
            commands.append(statement)
    found = [one for one in commands if ".py" in one or one.startswith("--")] or [
        " ".join(one for one in commands if not one.startswith("set "))
    ]
    if all(one.startswith("--") for one in found):
        found = [" ".join(found)]  # a list of arguments, a line each
    if len(found) > 1:
        raise SpecError([f"{path}: {len(found)} commands; keep the one to import: {found[1][:60]}"])
    words = _words(found[0], {**variables, **given}, path)
    at = next((n for n, word in enumerate(words) if word.endswith(".py")), -1)
    open_words = [word for word in words[at + 1 :] if _OPEN in word]
    if open_words:
        names = dict.fromkeys(word.split(_OPEN)[1] for word in open_words)
        raise SpecError([f"{path}: {name}" for name in names])
    return words[at + 1 :], words[at] if at >= 0 else "", words[: max(at, 0)]


def _words(command: str, variables: Mapping[str, str], path: Path) -> list[str]:
    """Return the words of a command; one that only a shell could tell has what is missing between _OPEN."""

    room = [MAX_BYTES]  # characters that may still be put in: variables that name others twice grow fast

    def put_in(text: str, inside: tuple[str, ...]) -> str:
        room[0] -= len(text)
        if room[0] < 0:
            raise SpecError([f"{path}: more than 1 MB once its variables are written out"])
        if "$(" in text or "`" in text:
            more = f"; give it with -o {inside[0]}=VALUE" if inside else ""
            return f"{_OPEN}{' '.join(text.split())[:60]}: only a shell could tell{more}{_OPEN}"

        def one(found: re.Match[str]) -> str:
            name = found[1] or found[4]
            held = found[3] if found[2] else None
            if name not in inside and len(inside) < _MAX_DEPTH:
                held = variables.get(name, held)  # NAME=${NAME:-8} takes its own default
            if held is None:
                given = next((outer for outer in inside if not outer.isdigit()), name)
                return f"{_OPEN}${name} is not set in the script; give it with -o {given}=VALUE{_OPEN}"
            return put_in(held, (*inside, name))

        return _VARIABLE.sub(one, text)

    text = put_in(command, ())
    quoted = re.sub(f"{_OPEN}([^{_OPEN}]*){_OPEN}", lambda found: shlex.quote(found[0]), text)
    try:
        return shlex.split(re.split(r"\s(?:\d?>>?|2>&1|\||&&|;)", quoted)[0].rstrip("&; "))
    except ValueError as error:
        raise SpecError([f"{path}: {error}"]) from error


def _flags(words: list[str]) -> dict[str, Any]:
    """Return flags with what follows them: True, one value, or a list."""
    flags: dict[str, list[str]] = {}
    at = ""
    for word in words:
        if not _FLAG.match(word):
            if at:
                flags[at].append(word)
            continue
        at, equals, value = word.lstrip("-").partition("=")
        if at in flags:
            raise SpecError([f"--{at} stands twice: {' '.join(flags[at])}, and then again"])
        flags[at] = [value] if equals else []
    return {name: values[0] if len(values) == 1 else values or True for name, values in flags.items()}
