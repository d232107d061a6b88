"""A run's folder: spec.yaml, environment.json, events.jsonl, checkpoints/, and one trainer at a time."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from gptbridge.checkpoint.state import is_of_a_run
from gptbridge.checkpoint.store import CHECKPOINTS, CheckpointStore
from gptbridge.errors import RunFailed, UsageError
from gptbridge.files import open_own, write_synced
from gptbridge.training.events import EVENTS_FILE, read_events
from gptbridge_specs import RunSpec, dump_yaml

SPEC_FILE = "spec.yaml"
ENVIRONMENT_FILE = "environment.json"
_LOCK_FILE = ".lock"


class RunFolder:
    """The folder of one run, while this process is its only trainer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = CheckpointStore(path / CHECKPOINTS)
        self.events = path / EVENTS_FILE

    def holds_run(self) -> bool:
        """Tell whether a run has made something here; one that failed before its first step has not."""
        if self.store.folder.is_dir() and any(self.store.folder.iterdir()):
            return True
        return self.events.exists() and any(e["event"] == "step" for e in read_events(self.events))

    def holds_users_spec(self) -> bool:
        """Tell whether the spec.yaml here is the user's own: a run writes environment.json before it."""
        return (self.path / SPEC_FILE).exists() and not (self.path / ENVIRONMENT_FILE).exists()

    def describe(self, spec: RunSpec, environment: dict[str, object]) -> None:
        """Write environment.json and then spec.yaml."""
        try:
            for name, content in (
                (ENVIRONMENT_FILE, json.dumps(environment, indent=2) + "\n"),
                (SPEC_FILE, dump_yaml(spec)),
            ):
                new = self.path / f".{name}.new"
                write_synced(new, content.encode())
                new.replace(self.path / name)
        except OSError as error:
            raise RunFailed(f"cannot be written: {error.strerror}", where=self.path) from error


@contextmanager
def locked(path: Path) -> Iterator[RunFolder]:
    """Make `path` and keep every other trainer out of it.

    UsageError where one is at work, where `path` is a file, or lies where another run's checkpoints do, or
    where its checkpoints/ is a link or a file; RunFailed where no folder can be made.
    """
    try:
        _require_own_place(path)
        path.mkdir(parents=True, exist_ok=True)
        handle = open_own(path / _LOCK_FILE)
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunFailed(f"the run folder cannot be written: {reason}", where=path) from error
    try:
        _lock(handle, path)
        try:
            yield RunFolder(path)
        finally:
            _remove_unused(path)
    finally:
        os.close(handle)


def _require_own_place(path: Path) -> None:
    """Refuse a place where no run can be, or where the pruning of another run would remove it."""
    hint = "Give another folder with --run"
    whole = path.resolve()
    for place in (whole, *whole.parents):
        if place.exists() and not place.is_dir():
            raise UsageError("this is a file, a run needs a folder", where=place, hint=hint)
        if is_of_a_run(place):
            raise UsageError("this is a checkpoint, no place for a run", where=place, hint=hint)
        if place.name == CHECKPOINTS and (place.parent / SPEC_FILE).exists():
            raise UsageError("here are the checkpoints of another run", where=place, hint=hint)
    checkpoints = path / CHECKPOINTS
    if checkpoints.is_symlink():
        raise UsageError("is a link, and nothing is written or removed through one", where=checkpoints)
    if checkpoints.exists() and not checkpoints.is_dir():
        raise UsageError("this is a file, checkpoints need a folder", where=checkpoints, hint=hint)


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(handle, 32).decode(errors="replace").strip()
        raise UsageError(
            f"another trainer is at work in this run folder: process {owner or 'unknown'}",
            where=path,
            hint="Wait for it, stop it, or give another folder with --run",
        ) from error
    os.ftruncate(handle, 0)
    os.write(handle, f"{os.getpid()}\n".encode())


def _remove_unused(path: Path) -> None:
    """Leave no folder behind where a command failed before its run began."""
    with suppress(OSError):
        if [entry.name for entry in path.iterdir()] == [_LOCK_FILE]:
            (path / _LOCK_FILE).unlink()
            path.rmdir()
