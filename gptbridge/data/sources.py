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
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, Any

from gptbridge.errors import BadInput, printable
from gptbridge.files import require_regular_file

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

CHUNK = 1 << 20

# Text shrinks to a third, logs to a hundredth: what grows beyond this was made to fill a disk.
_EXPANSION, _EXPANSION_FREE = 1000, 64 << 20
_XZ_MEMORY_LIMIT = 256 << 20  # bytes: xz -9 takes 65 MiB
_NAMED = 5  # names in a notice

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
    ((b"\xfd7zXZ\x00",), "xz", lambda file: _XzFile(file)),
)
_DAMAGE = (gzip.BadGzipFile, zlib.error, zstd.ZstdError, lzma.LZMAError)


@dataclass(frozen=True, slots=True)
class Source:
    """One file of text: `format` is text or jsonl, `size` its bytes on the disk."""

    path: Path
    format: str
    size: int


@dataclass(frozen=True, slots=True)
class Selection:
    """Which files of a folder are read: `glob` for their names, or None: those known as text.

    A file that `glob` matches is text where its name does not say otherwise, with `as_text` every file.
    """

    glob: str | None = None
    as_text: bool = False

    def format(self, path: Path) -> str | None:
        """Return text or jsonl; None for a file that is not to be read."""
        matched = self.glob is not None and fnmatch(path.name, self.glob)
        return _format(path) or ("text" if self.as_text or matched else None)

    def takes(self, path: Path) -> bool:
        """Tell whether `path`, met in a folder, is read."""
        return bool(self.format(path)) and (self.glob is None or fnmatch(path.name, self.glob))


@dataclass(frozen=True, slots=True)
class Found:
    """The sources, and what was passed over in folders because its name does not say that it is text."""

    sources: list[Source]
    passed_over: list[Path]

    def notice(self) -> str | None:
        """Return the line that counts and names what was passed over; None where there is nothing."""
        if not self.passed_over:
            return None
        names = ", ".join(printable(path, 80) for path in self.passed_over[:_NAMED])
        more = len(self.passed_over) - _NAMED
        return (
            f"passed over {len(self.passed_over)}, not text by name: {names}"
            + (f" and {more} more" if more > 0 else "")
            + "; --glob PATTERN or --as-text takes files"
        )


def find_sources(inputs: Iterable[str], selection: Selection | None = None) -> Found:
    """Return the sources that `inputs` name: a file as it is, a folder's files sorted, recursively.

    In a folder, what `selection` does not take is passed over; a file that is named outright and not
    known as text is refused.
    """
    wanted = selection or Selection()
    found = Found([], [])
    for name in inputs:
        path = Path(name)
        if not path.is_dir():
            found.sources.append(_source(path, wanted))
            continue
        files = [path / relative for relative in _walk(path)]
        within = [_source(file, wanted) for file in files if wanted.takes(file)]
        if not within:
            raise BadInput("no text in this folder", where=path, allowed=_allowed(wanted))
        found.sources.extend(within)
        if wanted.glob is None:
            found.passed_over.extend(file for file in files if not wanted.takes(file))
    return found


def _walk(folder: Path) -> list[str]:
    """Return the files in a folder, and the links to folders, which are not followed."""
    names: list[str] = []
    try:
        for parent, folders, files in os.walk(folder):
            # what belongs to a dataset that was written here before is no text
            folders[:] = [name for name in folders if not name.endswith((".tokenizer", ".partial"))]
            links = [name for name in folders if Path(parent, name).is_symlink()]
            names += [Path(parent, name).relative_to(folder).as_posix() for name in [*files, *links]]
    except RecursionError as error:
        raise BadInput("its folders lie too deep in each other", where=folder) from error
    return sorted(names)


def _source(path: Path, selection: Selection) -> Source:
    size = require_regular_file(path)
    if os.fsencode(path) != str(path).encode(errors="replace"):
        raise BadInput("its name is not UTF-8", where=path, hint="Rename it: the dataset says what it is of")
    format_name = selection.format(path)
    if format_name is None:
        raise BadInput("not known as text by its name", where=path, allowed=_allowed(selection))
    return Source(path, format_name, size)


def _format(path: Path) -> str | None:
    name = path.name.lower()
    for compression in COMPRESSIONS:
        name = name.removesuffix(compression)
    return FORMATS.get(Path(name).suffix)


def _allowed(selection: Selection) -> str:
    known = f"{', '.join(FORMATS)}, each also with {', '.join(COMPRESSIONS)}"
    return f"a name like {selection.glob}" if selection.glob else f"{known}; --as-text takes any"


class SourceStream:
    """The decompressed bytes of a source, read once from begin to end, whatever its size.

    `consumed` counts the bytes read from the disk; `finish` returns their BLAKE2b and checks
    that the file was whole and still has the size that it had when it was found.
    """

    def __init__(self, source: Source) -> None:
        self._path = source.path
        self._size = source.size
        self._unpacked = 0
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
            data = self._stream.read(CHUNK)
        self._count(len(data))
        return data

    def _count(self, nbytes: int) -> None:
        self._unpacked += nbytes
        if self._unpacked > _EXPANSION_FREE + _EXPANSION * self.consumed:
            raise BadInput(
                f"{self._kind} data that unpack to more than {_EXPANSION} times their size: "
                f"{self._unpacked} bytes of the first {self.consumed}",
                where=self._path,
                hint="Unpack it yourself if that is what it should hold",
            )

    def skip(self, count: int) -> None:
        """Read and drop `count` bytes."""
        with self._explained():
            while count:
                dropped = len(self._stream.read(min(count, CHUNK)))
                if not dropped:
                    raise BadInput("shorter than when it was begun", where=self._path)
                count -= dropped
                self._count(dropped)

    def finish(self) -> str:
        """Return the BLAKE2b-256 (hex) of the whole file on the disk, as `b2sum -l 256` prints it."""
        with self._explained():
            while self._raw.read(CHUNK):
                pass
        if self._raw.consumed != self._size:
            raise BadInput(
                f"changed while it was read: {self._raw.consumed} bytes, it had {self._size}",
                where=self._path,
            )
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
        except MemoryError as error:
            raise BadInput(f"{self._kind} data that ask for too much memory", where=self._path) from error

    def close(self) -> None:
        """Close the file."""
        self._raw.close()


class _XzFile:
    """What xz streams unpack to, one after the other; for LZMAFile no dictionary is too large."""

    def __init__(self, file: io.BufferedReader) -> None:
        self._file = file
        self._begin()

    def _begin(self) -> None:
        self._unpacker = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_LIMIT)

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes; nothing at the end. EOFError where a stream has none."""
        data = b""
        while not data:
            packed = b""
            if self._unpacker.eof:
                if not (packed := self._next_stream()):
                    break
                self._begin()
            elif self._unpacker.needs_input and not (packed := self._file.read(CHUNK)):
                raise EOFError
            data = self._unpacker.decompress(packed, size)
        return data

    def _next_stream(self) -> bytes:
        """Return how the next stream begins, behind the zeros that may pad one; nothing at the end."""
        packed = self._unpacker.unused_data.lstrip(b"\0")
        while not packed and (more := self._file.read(CHUNK)):
            packed = more.lstrip(b"\0")
        return packed


class _DigestingFile(io.RawIOBase):
    """A file that takes the digest of what is read from it; BLAKE2b is twice as fast as SHA-256."""

    def __init__(self, path: Path) -> None:
        self._empty = not require_regular_file(path)  # of /proc, where all sizes are 0, a read may wait
        self._file = path.open("rb", buffering=0)
        self.digest = hashlib.blake2b(digest_size=32)
        self.consumed = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = 0 if self._empty else self._file.readinto(buffer) or 0
        self.digest.update(memoryview(buffer)[:count])
        self.consumed += count
        return count

    def close(self) -> None:
        self._file.close()
        super().close()
