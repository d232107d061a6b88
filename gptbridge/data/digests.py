"""The identity of a dataset's content: every token of it, hashed once and kept beside the dataset."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gptbridge.errors import BadInput
from gptbridge.files import discard, read_json, write_json

if TYPE_CHECKING:
    from gptbridge.data.tokens import Ids, TokenSource

_KEPT_FROM = 1 << 20  # tokens: fewer take no time to hash
_CHUNK = 1 << 18  # tokens hashed at a time; part of the definition
_VERSION = 1
_HEX = re.compile(r"[0-9a-f]{64}")


def content_digest(source: TokenSource, offsets: TokenSource) -> str:
    """Return the sha256 (hex) over all ids and all documents' offsets, the same in every format.

    Both are cut into chunks of 2^18; one that fits is hashed as uint16, any other as int64.
    """
    digest = hashlib.sha256(f"{len(offsets) - 1} documents {len(source)} tokens".encode())
    for numbers in (source, offsets):
        for chunk in _chunks(numbers):
            dtype = "<u2" if chunk.min() >= 0 and chunk.max() < 1 << 16 else "<i8"
            digest.update(dtype.encode())
            digest.update(chunk.astype(dtype, copy=False).data)
    return digest.hexdigest()


def _chunks(source: TokenSource) -> Iterator[Ids]:
    for start in range(0, len(source), _CHUNK):
        yield source.read(start, min(start + _CHUNK, len(source)))


def kept_digest(path: Path, files: Sequence[Path], source: TokenSource, offsets: TokenSource) -> str:
    """Return `content_digest`, from what was kept of it while none of `files` has changed.

    It is kept in .NAME.digest.json beside the dataset `path` (in it, where it is a folder), under the
    size and the times of each file; a folder that can't be written costs only the time.
    """
    if len(source) < _KEPT_FROM:
        return content_digest(source, offsets)
    whole = path.resolve()
    keep = (path if path.is_dir() else path.parent) / f".{whole.name}.digest.json"
    before = _state(files)
    with suppress(BadInput):
        kept = read_json(keep)
        if kept.get("files") == before and _HEX.fullmatch(str(kept.get("sha256"))):
            return str(kept["sha256"])
    digest = content_digest(source, offsets)
    if _state(files) == before:
        new = keep.with_name(f"{keep.name}.{os.getpid()}.new")
        with suppress(OSError):
            discard(new)
            write_json(new, {"files": before, "sha256": digest})
            new.replace(keep)
    return digest


def _state(files: Sequence[Path]) -> dict[str, object]:
    """Return what changes with a file: a copy with the old time has a new time of change."""
    states = {path.name: path.stat() for path in files}
    return {"version": _VERSION} | {
        name: [one.st_size, one.st_mtime_ns, one.st_ctime_ns] for name, one in states.items()
    }
