"""Sources of text: which files, how each is compressed, and their bytes as a stream."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from gptbridge.errors import BadInput
from gptbridge.files import require_regular_file

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK = 1 << 20

FORMATS = {".txt": "text", ".jsonl": "jsonl", ".ndjson": "jsonl"}
COMPRESSIONS = (".gz", ".zst", ".zstd", ".bz2", ".xz")

# First bytes to opener: what a file is, it says itself. Zstandard may begin with a skippable frame.
_OPENERS: tuple[tuple[tuple[bytes, ...], str, Callable[[Any], Any]], ...] = (
    ((b"\x1f\x8b",), "gzip", lambda file: gzip.GzipFile(fileobj=file)),
    (
        (b"\x28\xb5\x2f\xfd", *(bytes([0x50 + i]) + b"\x2a\x4d\x18" for i in range(16))),
        "Zstandard",
        zstd.ZstdFile,
    ),
    ((b"BZh",), "bzip2", bz2.BZ2File),
    ((b"\xfd7zXZ\x00",), "xz", lzma.LZMAFile),
)
_DAMAGE = (gzip.BadGzipFile, zlib.error, zstd.ZstdError, lzma.LZMAError)


@dataclass(frozen=True, slots=True)
class Source:
    """One file of text: `format` is text or jsonl, `size` its bytes on the disk."""

    path: Path
    format: str
    size: int


def find_sources(inputs: Iterable[str]) -> list[Source]:
    """Return the sources that `inputs` name: a file as it is, a folder's files sorted, recursively.

    In a folder, files that are not text by their name are passed over; named outright, such a file
    is refused.
    """
    found: list[Source] = []
    for name in inputs:
        path = Path(name)
        if path.is_dir():
            files = [path / relative for relative in _walk(path)]
            within = [_source(file) for file in files if _format(file)]
            if not within:
                raise BadInput("no text in this folder", where=path, allowed=_allowed())
            found += within
        else:
            found.append(_source(path))
    return found


def _walk(folder: Path) -> list[str]:
    names: list[str] = []
    for parent, folders, files in os.walk(folder):
        # the merges.txt of a dataset written here before is no text
        folders[:] = [name for name in folders if not name.endswith(".tokenizer")]
        names += [Path(parent, file).relative_to(folder).as_posix() for file in files]
    return sorted(names)


def _source(path: Path) -> Source:
    size = require_regular_file(path)
    format_name = _format(path)
    if format_name is None:
        raise BadInput("not known as text by its name", where=path, allowed=_allowed())
    return Source(path, format_name, size)


def _format(path: Path) -> str | None:
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return FORMATS.get(Path(name).suffix)


def _allowed() -> str:
    return f"{', '.join(FORMATS)}, each also with {', '.join(COMPRESSIONS)}"


class SourceStream:
    """The decompressed bytes of a source, read once from begin to end, whatever its size.

    `consumed` counts the bytes read from the disk; `finish` returns their BLAKE2b and checks
    that the file was whole.
    """

    def __init__(self, source: Source) -> None:
        self._path = source.path
        with self._explained():
            self._raw = _DigestingFile(source.path)
        self._stream: IO[bytes] = self._open()

    def _open(self) -> IO[bytes]:
        buffered = io.BufferedReader(self._raw, CHUNK)
        with self._explained():
            start = buffered.peek(8)[:8]
        for magics, name, opener in _OPENERS:
            if start.startswith(magics):
                self._kind = name
                stream: IO[bytes] = opener(buffered)
                return stream
        if start and self._path.name.lower().endswith(COMPRESSIONS):
            raise BadInput("not compressed, in spite of its name", where=self._path)
        self._kind = "plain"
        return buffered

    @property
    def consumed(self) -> int:
        """Bytes read from the disk."""
        return self._raw.consumed

    def read(self) -> bytes:
        """Return up to 1 MiB; nothing at the end."""
        with self._explained():
            return self._stream.read(CHUNK)

    def skip(self, count: int) -> None:
        """Read and drop `count` bytes."""
        with self._explained():
            while count:
                dropped = len(self._stream.read(min(count, CHUNK)))
                if not dropped:
                    raise BadInput("shorter than when it was begun", where=self._path)
                count -= dropped

    def finish(self) -> str:
        """Return the BLAKE2b-256 (hex) of the whole file on the disk, as `b2sum -l 256` prints it."""
        with self._explained():
            while self._raw.read(CHUNK):
                pass
        return self._raw.digest.hexdigest()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn what can go wrong while reading into BadInput."""
        try:
            yield
        except EOFError as error:
            raise BadInput(f"the {self._kind} data ends too early", where=self._path) from error
        except _DAMAGE as error:
            raise BadInput(f"damaged {self._kind} data: {error}", where=self._path) from error
        except OSError as error:
            raise BadInput(error.strerror or str(error), where=self._path) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw.close()


class _DigestingFile(io.RawIOBase):
    """A file that takes the digest of what is read from it; BLAKE2b is twice as fast as SHA-256."""

    def __init__(self, path: Path) -> None:
        require_regular_file(path)
        self._file = path.open("rb", buffering=0)
        self.digest = hashlib.blake2b(digest_size=32)
        self.consumed = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self.digest.update(memoryview(buffer)[:count])
        self.consumed += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
