"""Events: what a run says while it goes. events.jsonl keeps them; screens, plots and plugins read them.

Each is one JSON object with `event` (its kind) and `time` (seconds since 1970). docs/training.md
lists the kinds and their fields.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gptbridge.checkpoint.store import FOLLOW, MOVED
from gptbridge.errors import BadInput, BridgeError, RunFailed, printable
from gptbridge.files import identity, open_own, require_regular_file

EVENTS_FILE = "events.jsonl"
_LINE_LIMIT = 16 << 20  # bytes
_LAST_STEP = (1 << 63) - 1

Event = Mapping[str, Any]
Observer = Callable[[Event], None]


class Events:
    """Where the loop says what happened; it does not know who listens."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def emit(self, kind: str, **fields: Any) -> None:
        """Hand one event to every observer, in order, also where one of them fails."""
        self.show({"event": kind, "time": round(time.time(), 3), **fields})

    def show(self, event: Event) -> None:
        """Hand over an event as it is."""
        failed: BridgeError | None = None
        for observer in self._observers:
            try:
                observer(event)
            except BridgeError as error:
                failed = failed or error
        if failed is not None:
            raise failed


class EventLog:
    """events.jsonl: appended, and flushed with every event."""

    def __init__(self, path: Path) -> None:
        """Open `path` for appending; drop a last line that a kill cut short."""
        self._path = path
        with _must_write(path):
            self._file = os.fdopen(open_own(path, os.O_APPEND), "a+b")
            self._file.truncate(_end_of_lines(self._file, path))
        self._identity = identity(path)

    def __call__(self, event: Event) -> None:
        """Append one event; RunFailed when the disk does not take it, or the run's folder has gone."""
        line = json.dumps(event, allow_nan=False) + "\n"
        with _must_write(self._path):
            self._file.write(line.encode())
            self._file.flush()
        if identity(self._path) != self._identity:
            raise RunFailed(MOVED, where=self._path.parent, hint=FOLLOW)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Follower:
    """Shows observers the events that another process appends to events.jsonl, from now on."""

    def __init__(self, path: Path, observers: Sequence[Observer]) -> None:
        self._path, self._observers = path, Events(observers)
        self._read = 0
        if path.exists():
            with path.open("rb") as file:
                self._read = _end_of_lines(file, path)
        self.open = False  # a run has begun and not ended

    def read(self) -> None:
        """Show what is new."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new.rfind(b"\n") + 1
        self._read += whole
        for line in new[:whole].splitlines():
            event = json.loads(line)
            self.open = event["event"] != "end"
            self._observers.show(event)


def _end_of_lines(file: IO[bytes], path: Path) -> int:
    """Return where the last whole line ends; BadInput where what follows is longer than any event."""
    start = max(0, file.seek(0, os.SEEK_END) - _LINE_LIMIT)
    file.seek(start)
    end = file.read(_LINE_LIMIT).rfind(b"\n") + 1
    if start and not end:
        raise BadInput("its last line is too long", where=path, allowed=f"below {_LINE_LIMIT} bytes")
    return start + end


def read_events(path: Path) -> list[dict[str, Any]]:
    """Return every event of an events.jsonl, as written. A last line cut short is left out."""
    require_regular_file(path)
    events = []
    with path.open("rb") as file:
        lines = iter(lambda: file.readline(_LINE_LIMIT), b"")
        for number, line in enumerate(lines, start=1):
            if len(line) == _LINE_LIMIT:
                raise BadInput(f"line {number} is too long", where=path, allowed=f"below {_LINE_LIMIT} bytes")
            if not line.endswith(b"\n"):
                break
            try:
                event = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise BadInput(f"line {number} is not JSON: {printable(error)}", where=path) from error
            if not _is_event(event):
                raise BadInput(f"line {number} is no event", where=path)
            events.append(event)
    return events


def _is_event(event: object) -> bool:
    """Tell whether `event` has the fields that those who read it back go by."""
    if not isinstance(event, dict) or not isinstance(kind := event.get("event"), str):
        return False
    step = event.get("step", None if kind in ("step", "resume", "evaluate") else 0)
    return type(step) is int and 0 <= step <= _LAST_STEP and isinstance(event.get("time", 0), (int, float))


def history(events: Iterable[Event]) -> list[Event]:
    """Return the events of the run as it counts in the end: each step once.

    A `resume` from step N takes back what came after step N, a `start` takes back everything.
    """
    kept: list[Event] = []
    for event in events:
        if event["event"] == "start":
            kept = []
        elif event["event"] == "resume":
            kept = [e for e in kept if e.get("step", 0) <= event["step"]]
        kept.append(event)
    return kept


@contextmanager
def _must_write(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RunFailed(f"cannot be written: {error.strerror}", where=path) from error
