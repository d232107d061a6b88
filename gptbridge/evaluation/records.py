"""The files that a model is measured on: one text, or records, one JSON object a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptbridge.data.sources import Source, SourceStream
from gptbridge.errors import BadInput, printable
from gptbridge.files import decode_object, require_regular_file

_LIMIT = 2 << 30  # bytes, unpacked

Check = Callable[[Any], bool]

_KINDS: dict[str, Check] = {
    "a string": lambda value: isinstance(value, str),
    "an integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "a list of two or more strings": lambda value: (
        isinstance(value, list) and len(value) > 1 and all(isinstance(item, str) for item in value)
    ),
}


@dataclass(frozen=True, slots=True)
class Record:
    """One line of a file: `where` names file and line for an error."""

    where: str
    content: Mapping[str, Any]

    def get(self, field: str, kind: str) -> Any:
        """Return a field, which has to be of `kind`, one of those above; BadInput where it is not."""
        if field not in self.content:
            raise BadInput(f"no field {field!r}", where=self.where)
        if not _KINDS[kind](self.content[field]):
            shown = printable(repr(self.content[field]), 60)
            raise BadInput(f"{field} is {shown}", where=self.where, allowed=kind)
        return self.content[field]


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, unpacked where it is compressed. BadInput for anything else."""
    data = bytearray()
    with closing(SourceStream(Source(path, "text", require_regular_file(path)))) as stream:
        while piece := stream.read():
            data += piece
            if len(data) > _LIMIT:
                raise BadInput("too long to be evaluated", where=path, allowed=f"{_LIMIT >> 30} GiB of text")
    try:
        return data.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(f"not UTF-8: byte 0x{data[error.start]:02x} in line {line}", where=path) from error


def read_records(path: Path) -> list[Record]:
    """Return the records of a file, one in each line that is not blank; BadInput for a line that is none."""
    lines = enumerate(read_text(path).split("\n"), start=1)
    records = [_record(path, number, line) for number, line in lines if line.strip()]
    if not records:
        raise BadInput("holds no record", where=path)
    return records


def _record(path: Path, number: int, line: str) -> Record:
    where = f"{path}, record {number}"
    try:
        return Record(where, decode_object(line.encode()))
    except ValueError as error:
        raise BadInput(f"not a JSON object: {printable(error)}", where=where) from error


def text_lines(path: Path) -> Iterator[Record]:
    """Yield a record with `src_txt` for each line of a text that is not blank."""
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if line.strip():
            yield Record(f"{path}, record {number}", {"src_txt": line})
