"""Files that strangers made, bounded and without surprises; and files that appear whole."""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from gptbridge.errors import BadInput, printable

CONFIG_LIMIT = 1 << 20
INDEX_LIMIT = 64 << 20
_MAX_ENTRIES = 1 << 18
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MAX_VALUES = 5 << 18  # of one JSON text: at worst they take 130 MB


def nearby(path: Path) -> str:
    """Return the next step for someone who named `path`, which does not exist."""
    try:
        if path.is_symlink():
            return "It is a link that leads nowhere"
        names = [entry.name for entry in path.parent.iterdir()]
    except (OSError, ValueError):
        return f"There is no folder {printable(path.parent)}"
    close = difflib.get_close_matches(path.name, names, n=1)
    if close:
        return f"Did you mean {printable(path.with_name(close[0]))}?"
    return "Check the path" + ("" if path.is_absolute() else f": it is taken from {Path.cwd()}")


def require_regular_file(path: Path) -> int:
    """Return the size in bytes of the regular file that `path` names or links to, or raise BadInput."""
    try:
        status = path.stat()
    except OSError as error:
        hint = nearby(path) if isinstance(error, FileNotFoundError) else None
        raise BadInput(error.strerror or "cannot be opened", where=path, hint=hint) from error
    if not stat.S_ISREG(status.st_mode):
        raise BadInput("not a regular file", where=path, hint="What comes through a pipe must be saved first")
    if not status.st_size and _is_kernels(status):
        raise BadInput("a file of the kernel, of which reading may have no end", where=path)
    return status.st_size


def _is_kernels(status: os.stat_result) -> bool:
    """Tell whether a file lies in /proc, where all sizes are 0 and reading some (kmsg) waits for ever."""
    proc = identity(Path("/proc"))
    return proc is not None and status.st_dev == proc[0] and Path("/proc").is_mount()


def read_limited(path: Path, limit: int, what: str) -> bytes:
    """Return the bytes of a regular file, which `what` names; BadInput for anything else or over `limit`."""
    size = require_regular_file(path)
    if size > limit:
        raise BadInput(f"{size} bytes of {what}", where=path, allowed=f"at most {limit}")
    try:
        with path.open("rb") as file:
            return file.read(size)  # of /proc, where all sizes are 0, a read may wait for ever
    except OSError as error:
        raise BadInput(f"cannot be read: {error.strerror}", where=path) from error


def list_folder(folder: Path) -> list[str]:
    """Return the sorted names in a folder; BadInput for one that is absurdly full or cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, _MAX_ENTRIES + 1)]
    except OSError as error:
        raise BadInput(f"cannot be listed: {error.strerror}", where=folder) from error
    if len(names) > _MAX_ENTRIES:
        raise BadInput("holds too many files", where=folder, allowed=f"at most {_MAX_ENTRIES}")
    return sorted(names)


def read_json(path: Path, *, limit: int = CONFIG_LIMIT) -> dict[str, Any]:
    """Return the object in a JSON file of at most `limit` bytes.

    BadInput for anything else: another type, bad UTF-8, a lone surrogate, a key twice, NaN, deep nesting.
    """
    content = read_limited(path, limit, "JSON")
    try:
        return decode_object(content)
    except ValueError as error:
        raise BadInput(f"not readable as JSON: {printable(error)}", where=path) from error


def decode_object(text: bytes) -> dict[str, Any]:
    """Return the JSON object that `text` is.

    ValueError for anything else: another type, bad UTF-8, a lone surrogate, a key twice, NaN, endless nesting
    or values.
    """
    if sum(map(text.count, (b",", b"[", b"{"))) > _MAX_VALUES:
        raise ValueError(f"it holds more than {_MAX_VALUES} values")
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
        if _SURROGATE.search(text):
            json.dumps(content, ensure_ascii=False).encode()  # escapes that make no pair are refused here
    except RecursionError as error:
        raise ValueError("it nests too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("it holds a lone surrogate") from error
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def write_json(path: Path, content: object) -> None:
    """Write `content` as indented JSON, on the disk when this returns."""
    write_synced(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def open_own(path: Path, flags: int = 0) -> int:
    """Open a file to be written in place, made where there is none; return its descriptor.

    A file that also has another name, by a link of either kind, is somebody else's: FileExistsError,
    as for what is no regular file.
    """
    others = FileExistsError(errno.EEXIST, "it is a link or no regular file", str(path))
    mode = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags
    try:
        handle = os.open(path, mode, 0o666)
    except OSError as error:
        raise (others if error.errno == errno.ELOOP else error) from None
    status = os.fstat(handle)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(handle)
        raise others
    return handle


def identity(path: Path) -> tuple[int, int] | None:
    """Return what tells a file or folder from any other, whatever its name; None for what is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """Write lines of text; see `write_synced`."""
    write_synced(path, "".join(f"{line}\n" for line in lines).encode())


def write_synced(path: Path, content: bytes) -> None:
    """Write a file and wait until the disk has it."""
    with os.fdopen(open_own(path), "wb") as file:
        file.truncate()
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def discard(path: Path) -> None:
    """Remove what has this name, if anything: of a link the link alone, a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has the names in `folder`."""
    sync_file(folder, os.O_DIRECTORY)


def sync_file(path: Path, flags: int = 0) -> None:
    """Wait until the disk has the content of a file."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        twice = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"the key {printable(twice)!r} appears twice")
    return content


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")
