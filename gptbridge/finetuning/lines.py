"""Records from the lines of a file, read as a stream: objects of JSON, or rows of the tables of known tasks.

The tables are those of GLUE, and of MindFormers' scripts, whose files lie in the same columns. Nothing in
them is quoted: a `"` is part of a sentence, but for IMDB and AG News, which are CSV.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptbridge.data.blocks import DOCUMENT_LIMIT
from gptbridge.data.readers.mindrecord import classified_rows
from gptbridge.data.sources import Source, SourceStream
from gptbridge.errors import BadInput, printable
from gptbridge.files import decode_object, require_regular_file

Fields = Mapping[str, Any]
_BOM = b"\xef\xbb\xbf"


class BadRecord(ValueError):
    """What is wrong with one record; who reads the file says where it stands."""


@dataclass(frozen=True, slots=True)
class Table:
    """Where a row has its texts and its class; -1 is the last column."""

    texts: tuple[int, ...]
    label: int
    labels: tuple[str, ...] = ("0", "1")

    def fields(self, line: str) -> Fields:
        """Return the fields of a row."""
        cells = line.split("\t")
        most = max(*self.texts, self.label)
        if len(cells) <= most:
            raise BadRecord(f"{len(cells)} columns, not {most + 1} or more")
        texts = [cells[column] for column in self.texts]
        return dict(zip(("text", "text_pair"), texts, strict=False)) | {"label": cells[self.label]}


_HEADERS = {"label", "gold_label", "quality", "is_duplicate", "score"}  # what a table calls its classes
_CSV_HEADERS = {b"review,sentiment", b"class index,title,description", b"label,title,description"}
_NLI = ("entailment", "not_entailment")
TABLES: Mapping[str, Table] = {
    "sst2": Table((0,), 1),
    "cola": Table((3,), 1),
    "mrpc": Table((3, 4), 0),
    "qqp": Table((3, 4), 5),
    "mnli": Table((8, 9), -1, labels=("contradiction", "entailment", "neutral")),
    "qnli": Table((1, 2), 3, labels=_NLI),
    "rte": Table((1, 2), 3, labels=_NLI),
    "wnli": Table((1, 2), 3),
    "sts-b": Table((7, 8), 9, labels=()),  # a number
}


def _imdb(line: str) -> Fields:
    """Return a review, and the word of eight letters after it."""
    text, comma, label = line[:-9], line[-9:-8], line[-8:]
    if comma != "," or label not in LABELS["imdb"]:
        raise BadRecord(f"ends in {printable(line[-12:])!r}, not in ,positive or ,negative")
    return {"text": _unquoted(text), "label": label}


def _ag_news(line: str) -> Fields:
    """Return title and description together, and the class, which counts from 1."""
    cells = line.strip().removeprefix('"').removesuffix('"').split('","')
    cells = [cell.replace('""', '"') for cell in cells] if len(cells) == 3 else _csv(line.strip())
    if len(cells) != 3:
        raise BadRecord(f'{len(cells)} columns of "class","title","description", not 3')
    label, title, description = cells
    return {"text": f"{title}. {description}", "label": label}


def _csv(line: str) -> list[str]:
    """Return the cells of a row, of which those without a comma may stand unquoted."""
    try:
        return next(csv.reader([line], strict=True), [])
    except csv.Error as error:
        raise BadRecord(f"not a row of CSV: {error}") from error


def _unquoted(cell: str) -> str:
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell


def _json(line: str) -> Fields:
    try:
        return decode_object(line.encode())
    except ValueError as error:
        raise BadRecord(f"not a JSON object: {printable(error, 120)}") from error


LABELS: Mapping[str, tuple[str, ...]] = {
    **{name: table.labels for name, table in TABLES.items()},
    "imdb": ("negative", "positive"),
    "ag-news": ("1", "2", "3", "4"),
}
_READERS: Mapping[str, Callable[[str], Fields]] = {
    "jsonl": _json,
    "alpaca": _json,
    "imdb": _imdb,
    "ag-news": _ag_news,
    **{name: table.fields for name, table in TABLES.items()},
}


def _is_header(line: bytes, format_name: str) -> bool:
    """Tell whether the first line of a file names columns, where the format has such."""
    if format_name in ("imdb", "ag-news"):
        return line.replace(b'"', b"").lower() in _CSV_HEADERS
    table, cells = TABLES.get(format_name), line.decode(errors="replace").split("\t")
    return table is not None and cells[min(table.label, len(cells) - 1)].strip().lower() in _HEADERS


def number_in(text: str) -> float | None:
    """Return the number that a text says; None where it says none, or no finite one."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def read_records(path: Path, format_name: str) -> Iterator[tuple[int, Fields | BadRecord]]:
    """Yield the number of each line, from 1, and its fields or what is wrong with it; blank lines are none.

    The header of a table is passed over. BadInput for a file that cannot be read.
    """
    if format_name == "mindrecord":
        yield from enumerate(classified_rows(path), start=1)
        return
    read = _READERS[format_name]
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip() or (number == 1 and _is_header(line, format_name)):
            continue
        try:
            yield number, read(_decoded(line))
        except BadRecord as problem:
            yield number, problem


def _decoded(line: bytes) -> str:
    if len(line) > DOCUMENT_LIMIT:
        raise BadRecord(f"longer than {DOCUMENT_LIMIT >> 20} MiB")
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise BadRecord(f"not UTF-8: byte 0x{line[error.start]:02x}") from error


def _lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, unpacked where it is compressed."""
    if path.is_dir():
        raise BadInput("is a folder", where=path, allowed="a file of records, one a line")
    rest = b""
    with closing(SourceStream(Source(path, "text", require_regular_file(path)))) as stream:
        while piece := stream.read():
            *whole, rest = (rest + piece).split(b"\n")
            for line in whole:
                yield line.removesuffix(b"\r").removeprefix(_BOM)
            if len(rest) > 2 * DOCUMENT_LIMIT:
                raise BadInput(f"a line of more than {DOCUMENT_LIMIT >> 20} MiB", where=path)
    yield rest.removesuffix(b"\r").removeprefix(_BOM)
