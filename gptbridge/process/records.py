"""What each rank says of itself in a file: who it is, how far it has come, how it ended.

The rank holds a lock on its file for as long as it lives, so that others know of its death at once, whatever
it died of, and take no process for it that has got its number since.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gptbridge.errors import RunFailed
from gptbridge.files import open_own

_BYTES = 1 << 16  # written at once, so that no reader sees half a record


@dataclass(frozen=True, slots=True)
class Record:
    """One rank, or a process of the launcher's that is none: its `rank` is None."""

    pid: int
    rank: int | None = None
    step: int = 0  # the last that it has done
    stack: tuple[str, ...] = ()  # where it stood when it was asked, the innermost call first
    exit_code: int | None = None  # None while it lives, and when it was killed
    message: str = ""  # why it ended
    foreseen: bool = False  # by an error that says what to do, not by one of a framework
    ended: float = 0.0  # seconds since 1970
    result: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What to call it."""
        return f"process {self.pid}" if self.rank is None else f"rank {self.rank}"


class OwnRecord:
    """This process's record in `folder`."""

    def __init__(self, folder: Path, rank: int | None) -> None:
        record = Record(os.getpid(), rank)
        self.folder = folder
        self._file = open_own(folder / f"{record.name.replace(' ', '-')}.json")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFailed(f"{record.name} of another start still runs", where=folder) from error
        self.record = record
        self.say()

    def say(self, **changes: Any) -> None:
        """Write the record with `changes`."""
        self.record = replace(self.record, **changes)
        content = json.dumps(asdict(self.record)).encode()
        os.pwrite(self._file, content.ljust(_BYTES), 0)

    def beat(self) -> None:
        """Show that this process runs."""
        os.utime(self._file)

    def end(self, exit_code: int, message: str = "", *, foreseen: bool = True, **changes: Any) -> None:
        """Write how this process ends, now."""
        self.say(
            exit_code=exit_code,
            message=message[: _BYTES // 8],
            foreseen=foreseen,
            ended=time.time(),
            stack=(),
            **changes,
        )


@dataclass(frozen=True, slots=True)
class Seen:
    """A record as another process sees it."""

    record: Record
    alive: bool
    beat: int  # another number after each sign of life


def seen_in(folder: Path) -> Iterator[Seen]:
    """Yield the records in `folder`; one that is being made is left out."""
    for path in sorted([*folder.glob("rank-*.json"), *folder.glob("process-*.json")]):
        try:
            alive, beat = not is_free(path), path.stat().st_mtime_ns
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            continue
        yield Seen(Record(**content | {"stack": tuple(content["stack"])}), alive, beat)


def is_free(path: Path) -> bool:
    """Tell whether no process holds the lock on a file. OSError where there is none."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(file)
    return True
