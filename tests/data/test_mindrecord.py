"""MindRecord files as MindSpore's own writer makes them, read without MindSpore."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptbridge.data.dataset import open_dataset
from gptbridge.data.inspection import inspect_dataset
from gptbridge.data.readers.mindrecord import decode_integers
from gptbridge.errors import BadInput

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(find_spec("mindspore") is None, reason="mindspore writes the files"),
]

# Runs where MindSpore is imported.
WRITER = """
import json, sys
import numpy as np
from mindspore.mindrecord import FileWriter
for job in json.load(sys.stdin):
    writer = FileWriter(job["path"], shard_num=job["shards"], overwrite=True)
    if job["small"]:
        writer.set_header_size(16 << 10)
        writer.set_page_size(32 << 10)
    schema = {name: {"type": job["type"], "shape": [-1]} for name in job["rows"][0]}
    writer.add_schema({**schema, **job["extra"]}, "lm-schema")
    if job["extra"]:
        writer.add_index(list(job["extra"]))
    data = []
    for i, row in enumerate(job["rows"]):
        arrays = {name: np.array(ids, job["type"]) for name, ids in row.items()}
        data.append({**arrays, **{name: i for name in job["extra"]}})
    for start in range(0, len(data), job["call"]):
        writer.write_raw_data(data[start : start + job["call"]])
    writer.commit()
"""

EDGES = [
    0,
    127,
    128,
    255,
    256,
    -1,
    -128,
    -129,
    32767,
    32768,
    65535,
    65536,
    -32768,
    -32769,
    2**31 - 1,
    -(2**31),
]
WIDE = [*EDGES, 2**31, -(2**31) - 1, 2**63 - 1, -(2**63)]


def text_rows(count: int, length: int, seed: int = 0) -> list[dict[str, list[int]]]:
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, 50257, length).tolist() for _ in range(count)]
    return [{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": ids} for ids in rows]


@dataclass(frozen=True)
class Job:
    path: str
    rows: list[dict[str, list[int]]]
    type: str = "int32"
    shards: int = 1
    call: int = 1000  # rows of one call of the writer
    extra: dict[str, object] = field(default_factory=dict)
    small: bool = True  # small pages; otherwise the writer's own sizes: 48 MiB a file at least

    @property
    def documents(self) -> list[list[int]]:
        return [row["input_ids"] for row in self.rows]


JOBS = {
    # as wikitext2_data_process.py writes, over several pages
    "lm": Job("lm.mindrecord", text_rows(90, 1025), call=25),
    "default": Job("default.mindrecord", text_rows(3, 9), small=False),
    "single": Job("single.mindrecord", [{"input_ids": EDGES}, {"input_ids": [7]}]),
    "wide": Job("wide.mindrecord", [{"input_ids": WIDE, "labels": [1]}], type="int64"),
    "uncompressible": Job("full.mindrecord", [{"input_ids": [2**30] * 9}]),
    "uneven": Job("uneven.mindrecord", [{"input_ids": list(range(n))} for n in (1, 2, 3, 4, 5, 8, 9)]),
    "indexed": Job("indexed.mindrecord", text_rows(20, 6), extra={"number": {"type": "int32"}}, call=7),
    "sharded": Job("sharded.mindrecord", text_rows(25, 9, seed=3), shards=12),
    "padded": Job("padded.mindrecord", [{"input_ids": [5, 6, 0], "attention_mask": [1, 1, 0]}]),
    "no ids": Job("other.mindrecord", [{"labels": [1, 2]}]),
}


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with all jobs' files."""
    folder = tmp_path_factory.mktemp("mindrecord")
    done = subprocess.run(
        [sys.executable, "-c", WRITER],
        input=json.dumps([asdict(job) for job in JOBS.values()]),
        capture_output=True,
        text=True,
        timeout=110,
        cwd=folder,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


def rows_of(path: Path) -> list[list[int]]:
    dataset = open_dataset(str(path))
    return [dataset.source.read(a, b).tolist() for a, b in pairwise(dataset.offsets.tolist())]


@pytest.mark.parametrize("name", ["lm", "default", "single", "wide", "uncompressible", "uneven", "indexed"])
def test_rows_are_read_as_they_were_written(written: Path, name: str) -> None:
    assert rows_of(written / JOBS[name].path) == JOBS[name].documents


@pytest.mark.parametrize("path", ["sharded", "sharded.mindrecord"])
def test_a_dataset_in_several_files_is_read_whole_and_in_order(written: Path, path: str) -> None:
    documents = JOBS["sharded"].documents
    assert rows_of(written / path) == documents
    assert rows_of(written / "sharded.mindrecord00")[0] == documents[0]


def test_any_range_of_tokens_may_be_read(written: Path) -> None:
    dataset = open_dataset(str(written / "lm.mindrecord"))
    assert dataset.tokens == 90 * 1025
    flat = np.concatenate(JOBS["lm"].documents)
    rng = np.random.default_rng(1)
    for start in [0, 1024, 1025, dataset.tokens - 1025, *rng.integers(0, dataset.tokens - 1025, 60).tolist()]:
        assert np.array_equal(dataset.source.read(start, start + 1025), flat[start : start + 1025])
    assert dataset.source.read(5, 5).tolist() == []
    assert (dataset.format, dataset.source.dtype.name) == ("mindrecord", "int32")


def copy(written: Path, folder: Path) -> Path:
    """Return a copy of a small dataset that a test may spoil."""
    for ending in ("", ".db"):
        shutil.copyfile(written / f"indexed.mindrecord{ending}", folder / f"x.mindrecord{ending}")
    return folder / "x.mindrecord"


def refusal(path: Path) -> str:
    with pytest.raises(BadInput) as caught:
        inspect_dataset(str(path))
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_a_copy_under_another_name_is_read(written: Path, tmp_path: Path) -> None:
    assert len(rows_of(copy(written, tmp_path))) == 20


def test_padding_is_refused(written: Path) -> None:
    line = refusal(written / "padded.mindrecord")
    assert "row 0: is padded" in line


def test_a_schema_without_ids_is_refused(written: Path) -> None:
    assert "input_ids" in refusal(written / "other.mindrecord")


def spoil_sql(*statements: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with closing(sqlite3.connect(f"{path}.db")) as connection:
            for statement in statements:
                connection.execute(statement)
            connection.commit()

    return spoil


def spoil_db(content: bytes | None) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        database = path.with_name(f"{path.name}.db")
        database.unlink()
        if content is not None:
            database.write_bytes(content)

    return spoil


def spoil_schema(path: Path) -> None:
    database = path.with_name(f"{path.name}.db")
    content = database.read_bytes()
    database.write_bytes(content.replace(b"INDEXES", b"\x8fNDEXES").replace(b"CREATE TABLE", b"CREATE TABLX"))


def spoil_bytes(offset: int, content: bytes) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(content)

    return spoil


def spoil_header(old: str, new: str) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        with path.open("r+b") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            header = file.read(size).decode()
            assert old in header
            changed = header.replace(old, new).encode()
            file.seek(0)
            file.write(struct.pack("<Q", len(changed)) + changed)

    return spoil


HEADER = 16 << 10  # where the first page begins
COLUMNS = "ROW_ID, PAGE_ID_BLOB, PAGE_OFFSET_BLOB, PAGE_OFFSET_BLOB_END"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n) SELECT i, 0, 0, 9 FROM n"
IDS = '"input_ids":{"shape":[-1],"type":"int32"}'

SPOILT = {
    "no db": (spoil_db(None), "x.mindrecord.db"),
    "empty db": (spoil_db(b""), "no table INDEXES"),
    "garbage db": (spoil_db(b"garbage " * 1000), "not a sound SQLite database"),
    "cut db": (spoil_db(b"SQLite format 3\0" + bytes(3000)), "x.mindrecord.db"),
    "schema not UTF-8": (spoil_schema, "not a sound SQLite database"),
    "no table": (spoil_sql("DROP TABLE INDEXES"), "no table INDEXES"),
    "a view": (
        spoil_sql("DROP TABLE INDEXES", f"CREATE VIEW INDEXES({COLUMNS}) AS {ENDLESS}"),
        "no table INDEXES",
    ),
    "computed": (
        spoil_sql(
            "DROP TABLE INDEXES",
            "CREATE TABLE INDEXES(ROW_ID INT, PAGE_ID_BLOB AS (abs(-9)), PAGE_OFFSET_BLOB INT)",
        ),
        "no table INDEXES of plain columns",
    ),
    "no column": (spoil_sql("DROP TABLE INDEXES", "CREATE TABLE INDEXES(A INT)"), "no such column"),
    "first row deleted": (spoil_sql("DELETE FROM INDEXES WHERE ROW_ID = 0"), "lists 19 rows"),
    "last row deleted": (spoil_sql("DELETE FROM INDEXES WHERE ROW_ID = 19"), "lists 19 rows"),
    "rows renumbered": (spoil_sql("UPDATE INDEXES SET ROW_ID = 77 WHERE ROW_ID = 6"), "not rows 0 to 19"),
    "text": (spoil_sql("UPDATE INDEXES SET PAGE_OFFSET_BLOB = 'x'"), "something else than integers"),
    "float": (spoil_sql("UPDATE INDEXES SET PAGE_OFFSET_BLOB = 0.5"), "something else than integers"),
    "negative page": (spoil_sql("UPDATE INDEXES SET PAGE_ID_BLOB = -1"), "of page -1"),
    "far page": (spoil_sql(f"UPDATE INDEXES SET PAGE_ID_BLOB = {2**62}"), f"of page {2**62}"),
    "negative offset": (spoil_sql("UPDATE INDEXES SET PAGE_OFFSET_BLOB = -5 WHERE ROW_ID = 4"), "row 4"),
    "end before start": (spoil_sql("UPDATE INDEXES SET PAGE_OFFSET_BLOB_END = 0 WHERE ROW_ID = 4"), "row 4"),
    "beyond the page": (
        spoil_sql(f"UPDATE INDEXES SET PAGE_OFFSET_BLOB_END = {2**40} WHERE ROW_ID = 19"),
        "row 19",
    ),
    "overlap": (spoil_sql("UPDATE INDEXES SET PAGE_OFFSET_BLOB = 0 WHERE ROW_ID = 4"), "row 4"),
    "row length": (spoil_bytes(HEADER, b"\xff"), "row 0"),
    "row length huge": (spoil_bytes(HEADER, b"\xff" * 8), "row 0"),
    "field length": (spoil_bytes(HEADER + 8, b"\xff" * 8), "row 0"),
    "field length small": (spoil_bytes(HEADER + 15, b"\x01"), "row 0"),
    "count": (spoil_bytes(HEADER + 16 + 12 + 8, b"\xff" * 4), "row 0"),
    "widths": (spoil_bytes(HEADER + 16 + 12 + 12, b"\xff"), "row 0: input_ids"),
    "version": (spoil_header('"version":"3.0"', '"version":"2.0"'), "version 2.0"),
    "two schemas": (spoil_header('"schema":[{', '"schema":[{},{'), "schema"),
    "type": (spoil_header(IDS, IDS.replace("int", "float")), "input_ids"),
    "header size": (spoil_header('"header_size":16384', '"header_size":-1'), "header_size is -1"),
    "page size": (spoil_header('"page_size":32768', '"page_size":"x"'), "page_size is x"),
    "page size zero": (spoil_header('"page_size":32768', '"page_size":0'), "page_size is 0"),
    "rows": (spoil_header('"end_row_id":20', '"end_row_id":99999999999'), "claims 99999999999 rows"),
    "pages": (spoil_header('"page":[', '"page":[1,'), "lists no pages"),
    "huge header": (spoil_bytes(0, b"\xff" * 8), "its header takes"),
    "no JSON": (spoil_bytes(8, b"garbage"), "not JSON"),
    "deep JSON": (spoil_header("{", "[" * 3000), "x.mindrecord"),
}


@pytest.mark.parametrize(("spoil", "said"), SPOILT.values(), ids=SPOILT)
def test_a_damaged_dataset_is_refused(
    written: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    path = copy(written, tmp_path)
    spoil(path)
    line = refusal(path)
    assert said in line
    assert "x.mindrecord" in line


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE INDEXES SET PAGE_ID_BLOB = 'x' || hex(zeroblob(250000)) WHERE ROW_ID = 7",
        "UPDATE INDEXES SET PAGE_ID_BLOB = zeroblob(40000000) WHERE ROW_ID = 7",
        "UPDATE INDEXES SET PAGE_OFFSET_BLOB = 'x' || hex(zeroblob(8000))",
    ],
)
def test_a_db_asks_for_no_memory_by_itself(written: Path, tmp_path: Path, statement: str) -> None:
    path = copy(written, tmp_path)
    spoil_sql("PRAGMA default_cache_size = 1000000", statement)(path)
    tracemalloc.start()
    line = refusal(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "x.mindrecord.db" in line
    assert peak < 16 << 20


@pytest.mark.parametrize("keep", [0, 1, 100, 8000, HEADER, HEADER + 200])
def test_a_truncated_dataset_is_refused(written: Path, tmp_path: Path, keep: int) -> None:
    path = copy(written, tmp_path)
    with path.open("r+b") as file:
        file.truncate(keep)
    assert "x.mindrecord" in refusal(path)


def pack(numbers: list[int]) -> bytes:
    """Pack integers as the module's docstring tells, each in its least width."""
    widths = [next(c for c in range(4) if -(1 << 8 * 2**c - 1) <= n < 1 << 8 * 2**c - 1) for n in numbers]
    codes = [*widths, *[0] * (-len(widths) % 4)]
    packed = [
        sum(c << s for c, s in zip(codes[i : i + 4], (6, 4, 2, 0), strict=True))
        for i in range(0, len(codes), 4)
    ]
    body = b"".join(n.to_bytes(1 << c, "little", signed=True) for n, c in zip(numbers, widths, strict=True))
    return struct.pack(">I", len(numbers)) + bytes(packed) + body


@given(st.lists(st.one_of(st.integers(-200, 70000), st.integers(-(2**63), 2**63 - 1)), max_size=40))
def test_packed_integers(numbers: list[int]) -> None:
    assert decode_integers(np.frombuffer(pack(numbers), np.uint8)).tolist() == numbers


@given(st.binary(max_size=60))
def test_no_bytes_break_the_decoder(content: bytes) -> None:
    field = np.frombuffer(content, np.uint8)
    try:
        integers = decode_integers(field)
    except ValueError:
        return
    assert len(integers) <= len(field)
