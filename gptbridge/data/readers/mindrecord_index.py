"""The SQLite database beside a MindRecord file: where each row lies.

Its table INDEXES has, for each row, ROW_ID (0, 1, ...), PAGE_ID_BLOB and the range
PAGE_OFFSET_BLOB to PAGE_OFFSET_BLOB_END within that page.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BadInput, printable
from gptbridge.files import require_regular_file
from gptbridge.weights.formats.source import SourceFile

_ROWS = "SELECT ROW_ID, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END FROM INDEXES LIMIT ?"
_SCHEMA = "SELECT sql FROM sqlite_master WHERE type = 'table' AND name = 'INDEXES' LIMIT 1"
# A table may compute its columns; one that stores them needs none of these words.
_COMPUTED = re.compile(r"\b(AS|GENERATED|VIRTUAL)\b", re.IGNORECASE)
_SMALLEST_ROW = 12  # bytes: its length and the number of integers
_LARGEST_ROW = 64 << 20  # what one may cost in memory
_CHUNK = 1 << 12
_LONGEST = 1 << 14  # bytes of a value or a row, of which _CHUNK are in memory
_STEPS = 1_000_000  # of SQLite's machine between two looks at the budget


def read_index(source: SourceFile, header: dict[str, Any]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the first byte and the end of each row, (rows,) each, in the order of ROW_ID.

    BadInput where the database is missing or no database, a row is missing, or one lies outside its
    page or in another.
    """
    header_size, page_size, expected = _layout(source, header)
    path = source.path.with_name(f"{source.path.name}.db")
    rows = _rows(path, limit=source.size // _SMALLEST_ROW)
    if len(rows) != expected or (rows[:, 0] != np.arange(len(rows))).any():
        raise BadInput(
            f"lists {len(rows)} rows that are not rows 0 to {expected - 1} of {printable(source.path.name)}",
            where=path,
            hint="Rows were deleted, or the two files are of two datasets",
        )
    _, pages, starts, ends = rows.T
    sound = (pages >= 0) & (pages <= source.size // page_size) & (starts >= 0)
    sound &= (ends - starts >= _SMALLEST_ROW) & (ends - starts <= _LARGEST_ROW) & (ends <= page_size)
    begins = header_size + np.where(sound, pages, 0) * page_size + np.where(sound, starts, 0)
    stops = begins + np.where(sound, ends - starts, 0)
    sound &= stops <= source.size
    sound[1:] &= begins[1:] >= stops[:-1]
    if not sound.all():
        row = int(sound.argmin())
        raise BadInput(
            f"row {row} is said to fill bytes {starts[row]} to {ends[row]} of page {pages[row]}",
            where=path,
            allowed=f"pages of {page_size} bytes in the file, rows of {_LARGEST_ROW} bytes or less, in order",
        )
    return begins, stops


def _layout(source: SourceFile, header: dict[str, Any]) -> tuple[int, int, int]:
    """Return where the pages begin, the size of a page, and the number of rows."""
    header_size, page_size = (_bytes(source, header, name) for name in ("header_size", "page_size"))
    try:
        last_rows = [page["end_row_id"] for page in header["page"] if page["page_type"] == "BLOB_DATA"]
    except (KeyError, TypeError):
        source.refuse("its header lists no pages")
    rows = max((row for row in last_rows if type(row) is int), default=0)
    if not 0 < rows <= source.size // _SMALLEST_ROW:
        source.refuse(f"claims {rows} rows in {source.size} bytes")
    return header_size, page_size, rows


def _bytes(source: SourceFile, header: dict[str, Any], name: str) -> int:
    size = header.get(name)
    if type(size) is not int or not 0 < size <= 1 << 40:
        source.refuse(f"{name} is {printable(size)}", allowed="a positive number of bytes")
    return size


def _rows(path: Path, limit: int) -> NDArray[np.int64]:
    """Return (rows, 4) of the table; nothing in the database is run, and no more than `limit` is read."""
    require_regular_file(path)
    budget = iter(range(100 + limit // 1000))
    uri = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.set_progress_handler(lambda: next(budget, None) is None, _STEPS)
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST)
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA cache_size = 100")  # pages; the file may ask for more
            schema = connection.execute(_SCHEMA).fetchone()
            if schema is None or _COMPUTED.search(str(schema[0])):
                raise BadInput("has no table INDEXES of plain columns", where=path)
            cursor = connection.execute(_ROWS, (limit,))
            chunks = [np.empty((0, 4), np.int64)]
            while rows := cursor.fetchmany(_CHUNK):
                chunks.append(_integers(path, rows))
    except (sqlite3.Error, UnicodeDecodeError) as error:  # a broken schema is quoted in sqlite's message
        raise BadInput(f"not a sound SQLite database: {printable(error)}", where=path) from error
    table = np.concatenate(chunks)
    return table[np.argsort(table[:, 0], kind="stable")]


def _integers(path: Path, rows: list[tuple[object, ...]]) -> NDArray[np.int64]:
    if set(map(type, chain.from_iterable(rows))) != {int}:
        raise BadInput("its table INDEXES holds something else than integers", where=path)
    return np.array(rows, np.int64)
