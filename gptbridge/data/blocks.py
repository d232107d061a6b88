"""From a stream to blocks of whole documents, small enough to encode in one go.

A block is cut without looking into its documents: that is left to whoever encodes it.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import orjson

from gptbridge.data.sources import Source, SourceStream

DOCUMENT_LIMIT = 16 << 20  # bytes: what one document may cost in memory, whatever a file holds

_SEPARATOR_LIMIT = 64 << 10  # bytes of a separator's line
_NO_NUMBER = re.compile(rb"[:\[,]\s*(NaN|-?Infinity)\s*[,\]}]")  # what Python's json writes all the same
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a document can't be encoded; `kind` is the same for all of a kind, `detail` is not."""

    kind: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.detail}" if self.detail else self.kind


TOO_LONG = Problem("too long", f"a document may have {DOCUMENT_LIMIT >> 20} MiB")


@dataclass(frozen=True, slots=True)
class JsonLines:
    """Whole lines of a .jsonl file, the first of them number `line`; `key` holds the text."""

    data: bytes
    line: int
    key: str

    def documents(self) -> Iterator[tuple[int, str | Problem]]:
        """Yield the line number and the text, or what is wrong, of each line that is not blank."""
        if not self.data.strip():
            return  # blank lines alone, of which there may be very many
        key = self.key
        for number, line in enumerate(self.data.split(b"\n"), self.line):
            if len(line) > DOCUMENT_LIMIT:
                yield number, TOO_LONG
                continue
            try:
                text = orjson.loads(line)[key]
            except (ValueError, TypeError, KeyError):
                if line.strip():
                    yield number, _explain(line, key)
                continue
            yield number, text if type(text) is str else Problem(f"{key!r} is not a string")


def _explain(line: bytes, key: str) -> Problem:
    try:
        content = orjson.loads(line)
    except ValueError as error:
        if constant := _NO_NUMBER.search(line):
            return Problem("not JSON", f"{constant[1].decode()} is no number that JSON knows")
        return Problem("not JSON", str(error).partition(": line ")[0])
    return Problem(f"no {key!r}" if isinstance(content, dict) else "not a JSON object")


@dataclass(frozen=True, slots=True)
class PlainTexts:
    """Whole documents of a .txt file with the numbers of their first lines."""

    texts: tuple[tuple[int, bytes], ...]

    def documents(self) -> Iterator[tuple[int, str | Problem]]:
        """Yield the line number and the text, or what is wrong, of each document."""
        for number, data in self.texts:
            if len(data) > DOCUMENT_LIMIT:
                yield number, TOO_LONG
                continue
            try:
                yield number, data.decode()
            except UnicodeDecodeError as error:
                number += data.count(b"\n", 0, error.start)
                yield number, Problem("not UTF-8", f"byte 0x{data[error.start]:02x}")


@dataclass(frozen=True, slots=True)
class Oversized:
    """A document beyond the limit, which was not kept; it began at `line`."""

    line: int

    def documents(self) -> Iterator[tuple[int, str | Problem]]:
        """Yield the refusal."""
        yield self.line, TOO_LONG


Payload = JsonLines | PlainTexts | Oversized


@dataclass(frozen=True, slots=True)
class Position:
    """Where a block ends: byte `offset` of the decompressed source, before line number `line`."""

    source: int = 0
    offset: int = 0
    line: int = 1


@dataclass(frozen=True, slots=True)
class Block:
    """Documents to encode, and where reading goes on. The last block of a source has its digest."""

    source: int
    payload: Payload
    end: Position
    consumed: int  # bytes of all sources read so far
    digest: str | None = None


class _Cutter(ABC):
    """Reads a stream into a buffer and cuts whole documents off its front.

    A document beyond the limit is dropped while it is read, so that the buffer stays small, and
    named at its end; with `strict` at once.
    """

    def __init__(self, stream: SourceStream, start: Position, strict: bool) -> None:
        self._stream = stream
        self._strict = strict
        self._buffer = b""
        self.position = start

    def payloads(self) -> Iterator[Payload]:
        """Yield all that the stream holds; `position` is then where each one ends."""
        dropped_line = None
        final = False
        while not final:
            final = not self._fill()
            if dropped_line is not None:
                end = len(self._buffer) if final else self._first_end()
                if end is None:
                    self._advance(self._droppable())
                    continue
                self._advance(end)
                yield Oversized(dropped_line)
                dropped_line = None
            payload, end = self._take(final)
            self._advance(end)
            yield payload
            if len(self._buffer) > DOCUMENT_LIMIT:
                dropped_line = self.position.line
                if self._strict:
                    yield Oversized(dropped_line)

    @abstractmethod
    def _take(self, final: bool) -> tuple[JsonLines | PlainTexts, int]:
        """Return the buffer's whole documents and where they end; the first is on the position's line."""

    @abstractmethod
    def _first_end(self) -> int | None:
        """Return where the buffer's first document ends, if it does."""

    def _droppable(self) -> int:
        # the last line may be the beginning of a separator, unless it is too long for one
        last_line = self._buffer.rfind(b"\n") + 1
        return last_line if len(self._buffer) - last_line < _SEPARATOR_LIMIT else len(self._buffer)

    def _fill(self) -> bool:
        chunk = self._stream.read()
        self._buffer += chunk
        if self.position.offset == 0 and self._buffer.startswith(_BOM):
            self._advance(len(_BOM))
        return bool(chunk)

    def _advance(self, count: int) -> None:
        at = self.position
        lines = self._buffer.count(b"\n", 0, count)
        self.position = Position(at.source, at.offset + count, at.line + lines)
        self._buffer = self._buffer[count:]


class _JsonCutter(_Cutter):
    def __init__(self, stream: SourceStream, start: Position, strict: bool, key: str) -> None:
        super().__init__(stream, start, strict)
        self._key = key

    def _take(self, final: bool) -> tuple[JsonLines, int]:
        end = len(self._buffer) if final else self._buffer.rfind(b"\n") + 1
        return JsonLines(self._buffer[:end], self.position.line, self._key), end

    def _first_end(self) -> int | None:
        return self._buffer.find(b"\n") + 1 or None


class _TextCutter(_Cutter):
    """Without a separator a file is one document; with one, a line that equals it ends a document."""

    def __init__(self, stream: SourceStream, start: Position, strict: bool, separator: str | None) -> None:
        super().__init__(stream, start, strict)
        self._separator = None if separator is None else _separator_lines(separator.strip().encode())

    def _take(self, final: bool) -> tuple[PlainTexts, int]:
        texts: list[tuple[int, bytes]] = []
        begin, size, line = 0, len(self._buffer), self.position.line
        buffer = self._buffer + b"\n" if final else self._buffer
        for match in self._separator.finditer(buffer) if self._separator else ():
            if match.start() > begin:
                texts.append((line, buffer[begin : match.start()]))
            line += buffer.count(b"\n", begin, match.end())
            begin = min(match.end(), size)
        if final:
            # after a stop at its end a file without separator has no second, empty document
            if begin < size or (self._separator is None and self.position.offset == 0):
                texts.append((line, self._buffer[begin:]))
            begin = size
        return PlainTexts(tuple(texts)), begin

    def _first_end(self) -> int | None:
        match = self._separator.search(self._buffer) if self._separator else None
        return match.end() if match else None


def _separator_lines(word: bytes) -> re.Pattern[bytes]:
    """Match a run of lines that hold `word` alone: together they end one document."""
    if not word:
        return re.compile(rb"(?m)^[ \t\r\n]*\n")
    return re.compile(rb"(?m)(?:^[ \t\r]*" + re.escape(word) + rb"[ \t\r]*\n)++")


def read_blocks(
    sources: list[Source], start: Position, *, json_key: str, separator: str | None, strict: bool = True
) -> Iterator[Block]:
    """Yield the blocks of `sources` from `start` on, in order; with `strict`, none after an `Oversized`."""
    consumed = sum(source.size for source in sources[: start.source])
    for index in range(start.source, len(sources)):
        position = start if index == start.source else Position(index)
        with closing(SourceStream(sources[index])) as stream:
            stream.skip(position.offset)
            cut = (
                _JsonCutter(stream, position, strict, json_key)
                if sources[index].format == "jsonl"
                else _TextCutter(stream, position, strict, separator)
            )
            for payload in cut.payloads():
                yield Block(index, payload, cut.position, consumed + stream.consumed)
                if strict and isinstance(payload, Oversized):
                    return
            digest = stream.finish()
        consumed += sources[index].size
        yield Block(index, PlainTexts(()), Position(index + 1), consumed, digest)
