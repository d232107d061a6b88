"""Write MindRecord files, as mindspore.mindrecord.FileWriter does, of rows of integers; without MindSpore.

The layout is told in `gptbridge.data.readers.mindrecord`. A file has one page of rows, as small as they
allow, and one of the empty records that MindSpore keeps beside them.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import RunFailed, UsageError

_HEADER, _SMALLEST_PAGE, _LARGEST_PAGE = 1 << 14, 1 << 15, 1 << 28  # bytes; MindSpore reads no larger page
_EMPTY = (5).to_bytes(8, "little") + b"\x81\xa2id\x00"  # what MindSpore keeps of a row without other fields
_COLUMNS = "ROW_ID PAGE_ID_RAW PAGE_OFFSET_RAW PAGE_OFFSET_RAW_END ROW_GROUP_ID PAGE_ID_BLOB PAGE_OFFSET_BLOB"
_TABLE = ", ".join(f"{name} INT NOT NULL" for name in (*_COLUMNS.split(), "PAGE_OFFSET_BLOB_END"))


def write_mindrecord(
    path: Path, rows: Iterable[Mapping[str, Sequence[int] | NDArray[Any]]], description: str
) -> int:
    """Write `rows`, which all have the same fields of int32, and the database beside them.

    Return their number. `description` is the schema's. UsageError where a file of this name is there, before
    any row is asked for, and for more rows than one can hold; RunFailed where the disk does not take it.
    """
    database = path.with_name(f"{path.name}.db")
    for file in (path, database):
        if os.path.lexists(file):
            raise UsageError("exists already", where=file, hint="Give another --output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with ExitStack() as unless_whole:
            unless_whole.callback(path.unlink, missing_ok=True)
            unless_whole.callback(database.unlink, missing_ok=True)
            ends = _write_rows(path, rows, description)
            _write_index(database, path.name, ends)
            unless_whole.pop_all()
    except OSError as error:
        raise RunFailed(f"cannot be written: {error.strerror}", where=path) from error
    return len(ends) - 1


def _write_rows(
    path: Path, rows: Iterable[Mapping[str, Sequence[int] | NDArray[Any]]], description: str
) -> list[int]:
    """Write the file itself; return where each row ends, 0 first."""
    names: list[str] = []
    ends = [0]
    with path.open("xb") as stream:
        stream.seek(_HEADER)
        for row in rows:
            names = names or sorted(row)
            ends.append(ends[-1] + _append(stream, [row[name] for name in names]))
            if ends[-1] > _LARGEST_PAGE:
                raise UsageError(
                    f"more than {_LARGEST_PAGE >> 20} MiB of rows", where=path, hint="Write parts of the data"
                )
        count = len(ends) - 1
        page = max(_SMALLEST_PAGE, -(-max(ends[-1], count * len(_EMPTY)) // 4096) * 4096)
        stream.seek(_HEADER + page)
        stream.write(_EMPTY * count)
        stream.truncate(_HEADER + 2 * page)
        stream.seek(0)
        header = json.dumps(_header(path, names, description, ends, page), separators=(",", ":")).encode()
        stream.write(len(header).to_bytes(8, "little") + header)
    return ends


def encode_integers(values: Sequence[int] | NDArray[Any]) -> bytes:
    """Return integers as a field holds them: see `gptbridge.data.readers.mindrecord.decode_integers`."""
    numbers = np.asarray(values, np.int64)
    codes = sum((numbers < -(1 << bits)) | (numbers >= 1 << bits) for bits in (7, 15, 31))
    packed = np.zeros(-(-len(numbers) // 4) * 4, np.uint8)
    packed[: len(numbers)] = codes
    widths = packed.reshape(-1, 4) @ np.array([64, 16, 4, 1])
    parts = [
        int(n).to_bytes(1 << int(c), "little", signed=True) for n, c in zip(numbers, packed, strict=False)
    ]
    return b"".join([len(numbers).to_bytes(4, "big"), widths.astype(np.uint8).tobytes(), *parts])


def _append(stream: BinaryIO, fields: Sequence[Sequence[int] | NDArray[Any]]) -> int:
    """Write a row; return its bytes."""
    parts = [encode_integers(field) for field in fields]
    if len(parts) > 1:
        parts = [len(part).to_bytes(8, "big") + part for part in parts]
    content = b"".join(parts)
    return stream.write(len(content).to_bytes(8, "little") + content)


def _header(path: Path, names: list[str], description: str, ends: list[int], page: int) -> dict[str, Any]:
    count = len(ends) - 1
    group = [{"id": 0, "offset": 0}]
    common = {"page_type_id": 0, "row_group_ids": group, "shard_id": 0, "start_row_id": 0}
    blob = {"end_row_id": count, "page_id": 0, "page_size": ends[-1], "page_type": "BLOB_DATA", **common}
    raw = {"end_row_id": 0, "page_id": 1, "page_size": count * len(_EMPTY), "page_type": "RAW_DATA", **common}
    types = {name: {"shape": [-1], "type": "int32"} for name in names}
    return {
        "header_size": _HEADER,
        "index_fields": None,
        "page": [blob, raw],
        "page_size": page,
        "compression_size": 0,
        "schema": [{"blob_fields": names, "desc": description, "schema": types}],
        "shard_addresses": [path.name],
        "shard_id": 0,
        "statistics": None,
        "version": "3.0",
    }


def _write_index(database: Path, name: str, ends: list[int]) -> None:
    size = len(_EMPTY)
    rows = (
        (n, 1, n * size, (n + 1) * size, 0, 0, start, end) for n, (start, end) in enumerate(pairwise(ends))
    )
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(f"CREATE TABLE INDEXES({_TABLE}, PRIMARY KEY(ROW_ID))")
        connection.execute("CREATE TABLE SHARD_NAME(NAME TEXT NOT NULL)")
        connection.execute("INSERT INTO SHARD_NAME VALUES (?)", (name,))
        connection.executemany("INSERT INTO INDEXES VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        connection.commit()
