"""A token dataset in the making: PREFIX.partial holds what is done, and a journal that vouches for it.

Tokens and lengths are appended; each line of the journal says how far they count, where reading
goes on, and the CRC-32 of what was added, and begins with its own CRC-32. After a kill the lines
that hold are kept and the rest is cut off.

Nothing else may lie in the folder, and no link: what is not known to come from a preparation is
neither written nor removed. plan.json comes first and goes last; it is called published.json from
where on all files of the dataset are whole and are given their names.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from isal.isal_zlib import crc32

from gptbridge.data.blocks import Position
from gptbridge.data.encoding import Encoded
from gptbridge.errors import BadInput, RunFailed, UsageError
from gptbridge.files import discard, identity, read_json, sync_folder, write_json

MADE = "dataset."  # begins the names of what `publish` gives a name
_PLAN, _PUBLISHED, _LOCK = "plan.json", "published.json", "lock"
_APPENDED = ("tokens.bin", "lengths.bin", "journal.jsonl")
_PLAN_LIMIT = 1 << 30  # it names every source
_LINE_LIMIT = 64 << 20  # bytes of one of the journal


@dataclass(slots=True)
class Done:
    """How far a preparation has come."""

    position: Position = field(default_factory=Position)
    tokens: int = 0
    documents: int = 0
    empty: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    digests: list[str] = field(default_factory=list)


class PartialDataset:
    """The folder PREFIX.partial, held by one process at a time; `tokens` and `lengths` are files in it.

    `done` is what it held when it was opened, and grows with `append` and `commit`. Another plan
    than the one it was begun with empties it. `published` tells that a kill came while the files of
    this plan were given their names. UsageError where the folder holds anything else; `replace`
    removes that instead.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], token_size: int, *, replace: bool = False) -> None:
        self.folder = folder
        self.tokens, self.lengths, journal = (folder / name for name in _APPENDED)
        self._token_size, self._sources = token_size, len(plan["sources"])
        if replace and _foreign(folder):
            discard(folder)
        if foreign := _foreign(folder):
            raise UsageError(
                "does not come from a preparation, which needs this folder for itself",
                where=foreign,
                hint="Move it away, give another --output, or add --overwrite to remove it",
            )
        folder.mkdir(parents=True, exist_ok=True)
        self._itself = identity(folder)
        self._lock = (folder / _LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError("another process is preparing this dataset", where=folder) from error
        self.done = Done()
        self._files: list[IO[bytes]] = []
        self.published = is_published(folder, plan)
        if self.published:
            return
        if _read(folder / _PLAN) != plan:
            self._begin(plan)
        for path in (self.tokens, self.lengths, journal):
            path.touch()
            self._files.append(path.open("r+b"))
        self._tokens, self._lengths, self._journal = self._files
        self._crcs = [0, 0]
        self._new_digests = 0
        self._replay()

    def append(self, encoded: Encoded, end: Position) -> None:
        """Add a block's documents; they count from the next commit on."""
        for i, (file, array) in enumerate(((self._tokens, encoded.tokens), (self._lengths, encoded.lengths))):
            data = array.data.cast("B") if len(array) else b""
            file.write(data)
            self._crcs[i] = crc32(data, self._crcs[i])
        done = self.done
        done.position = end
        done.tokens += len(encoded.tokens)
        done.documents += len(encoded.lengths)
        done.empty += encoded.empty
        done.problems.update(problem.kind for _, problem in encoded.problems)

    def finish_source(self, digest: str) -> None:
        """Note the digest of a source that was read to its end."""
        self.done.digests.append(digest)
        self._new_digests += 1

    def commit(self) -> None:
        """Make all that was appended survive a kill.

        RunFailed where the folder was renamed or removed: whatever has its name now is somebody else's.
        """
        for file in (self._tokens, self._lengths):
            file.flush()
            os.fsync(file.fileno())
        done, at = self.done, self.done.position
        line = {
            "position": [at.source, at.offset, at.line],
            "counts": [done.tokens, done.documents, done.empty],
            "problems": done.problems,
            "digests": done.digests[len(done.digests) - self._new_digests :],
            "crc32": self._crcs,
        }
        self._journal.write(_sealed(json.dumps(line).encode()))
        self._journal.flush()
        os.fsync(self._journal.fileno())
        if identity(self.folder) != self._itself:
            raise RunFailed("was renamed or removed while it was written", where=self.folder)
        self._crcs = [0, 0]
        self._new_digests = 0

    def mark_whole(self) -> None:
        """Note that all files of the dataset are whole: a rerun gives them their names and ends."""
        sync_folder(self.folder)
        (self.folder / _PLAN).replace(self.folder / _PUBLISHED)
        sync_folder(self.folder)
        self.published = True

    def publish(self, names: dict[Path, Path]) -> None:
        """Give each file of `names` its name, in order, unless it has it; what had the name is replaced."""
        for made, name in names.items():
            if made.exists():
                discard(name)
                made.replace(name)

    def close(self) -> None:
        """Let go of the folder; it stays, to be continued."""
        for file in self._files:
            file.close()
        self._lock.close()

    def remove(self) -> None:
        """Delete the folder, last what tells whose it is."""
        self.close()
        last = (_LOCK, _PLAN, _PUBLISHED)
        for entry in sorted(self.folder.iterdir(), key=lambda path: (path.name in last, path.name)):
            discard(entry)
        self.folder.rmdir()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # a bad document is mended in its file, and then another plan holds: nothing could go on
        if kind is not None and issubclass(kind, BadInput):
            self.remove()
        self.close()

    def _begin(self, plan: dict[str, Any]) -> None:
        """Empty the folder under the old plan, so that no line of its journal is read under the new one."""
        for entry in self.folder.iterdir():
            if entry.name not in (_LOCK, _PLAN):
                discard(entry)
        new = self.folder / f"{_PLAN}.new"
        write_json(new, plan)
        new.replace(self.folder / _PLAN)

    def _replay(self) -> None:
        """Go through the journal as far as files and checksums agree with it; cut off the rest."""
        held = 0
        for line in iter(lambda: self._journal.readline(_LINE_LIMIT), b""):
            done = self._followed(line)
            if done is None:
                break
            self.done = done
            held += len(line)
        for file, size in (
            (self._journal, held),
            (self._tokens, self.done.tokens * self._token_size),
            (self._lengths, self.done.documents * 4),
        ):
            file.truncate(size)
            file.seek(size)

    def _followed(self, line: bytes) -> Done | None:
        content = line[9:].removesuffix(b"\n")
        if line != _sealed(content):
            return None
        before = self.done
        with suppress(ValueError, TypeError, LookupError, AttributeError):
            entry = json.loads(content)
            (tokens, documents, empty), at = entry["counts"], Position(*entry["position"])
            digests, problems = before.digests + entry["digests"], entry["problems"]
            added = [(tokens - before.tokens) * self._token_size, (documents - before.documents) * 4]
            numbers = (tokens, documents, empty, *entry["position"], *problems.values())
            whole = all(type(number) is int for number in numbers) and min(*numbers, *added) >= 0
            if not whole or not at.source == len(digests) <= self._sources:
                return None  # sealed, and yet not what `commit` writes
            crcs = [_crc(f, n) for f, n in zip((self._tokens, self._lengths), added, strict=True)]
            if crcs == entry["crc32"] and all(isinstance(digest, str) for digest in digests):
                return Done(at, tokens, documents, empty, Counter(problems), digests)
        return None


def is_published(folder: Path, plan: dict[str, Any]) -> bool:
    """Tell whether a kill came when the files of `plan` were whole and not all had their names."""
    return _read(folder / _PUBLISHED) == plan


def _read(path: Path) -> object:
    try:
        return read_json(path, limit=_PLAN_LIMIT)
    except BadInput:
        return None


def _foreign(folder: Path) -> Path | None:
    """Return what is at `folder`, or in it, and does not come from a preparation; None: nothing."""
    with suppress(FileNotFoundError):
        if not stat.S_ISDIR(folder.lstat().st_mode):
            return folder
        entries = sorted(folder.iterdir())
        planned = any(_is_plan(_read(folder / name)) for name in (_PLAN, _PUBLISHED))
        known = {_LOCK, f"{_PLAN}.new"} | ({_PLAN, _PUBLISHED, *_APPENDED} if planned else set())
        for entry in entries:
            own = entry.name in known or (planned and entry.name.startswith(MADE))
            if not own or not _is_plain(entry, may_be_folder=entry.name.startswith(MADE)):
                return entry
    return None


def _is_plan(content: object) -> bool:
    return isinstance(content, dict) and {"version", "tokenizer", "options", "sources"} == content.keys()


def _is_plain(path: Path, *, may_be_folder: bool) -> bool:
    """Tell whether `path` is a file with this one name, or a folder: no link leads anywhere else."""
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        return may_be_folder
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1


def _sealed(content: bytes) -> bytes:
    return b"%08x %s\n" % (crc32(content), content)


def _crc(file: IO[bytes], count: int) -> int | None:
    """Return the CRC-32 of the next `count` bytes; None if the file ends before."""
    crc = 0
    while count:
        data = file.read(min(count, 1 << 20))
        if not data:
            return None
        crc = crc32(data, crc)
        count -= len(data)
    return crc
