"""Which files are read, what is passed over, and what a file may do while it is read."""

from __future__ import annotations

import gzip
import lzma
import os
import random
import struct
import zlib
from contextlib import closing
from pathlib import Path

import pytest
from backports import zstd

from gptbridge.data import prepare as prepare_module
from gptbridge.data import sources
from gptbridge.data.prepare import TextOptions, prepare
from gptbridge.data.sources import Selection, Source, SourceStream, find_sources
from gptbridge.errors import BadInput
from tests.data.prepared import as_bytes, read_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "in"
    (folder / "below").mkdir(parents=True)
    for name in ("a.txt", "b.md", "below/c.py", "d.py"):
        (folder / name).write_text(name)
    (folder / "e.jsonl").write_text('{"text": "e"}\n')
    (folder / "link").symlink_to(tmp_path)
    return folder


def test_what_is_passed_over_is_counted_and_named(folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    prepare([str(folder)], "byte", tmp_path / "out", on_problem=told.append)
    assert read_dataset(tmp_path / "out") == as_bytes(["a.txt", "e"])
    (line,) = told
    assert "passed over 4" in line
    assert all(str(folder / name) in line for name in ("b.md", "below/c.py", "d.py", "link"))
    assert "--glob" in line
    assert "--as-text" in line


def test_many_names_are_cut_and_escaped(folder: Path) -> None:
    for i in range(20):
        (folder / f"{i}\x1b[2J.bin").write_bytes(b"")
    notice = find_sources([str(folder)]).notice()
    assert notice is not None
    assert "passed over 24" in notice
    assert "and 19 more" in notice
    assert "\x1b" not in notice


@pytest.mark.parametrize(
    ("selection", "texts"),
    [
        (Selection("*.py"), ["below/c.py", "d.py"]),
        (Selection("*.jsonl"), ["e"]),
        (Selection("[ae].*"), ["a.txt", "e"]),
        (Selection(as_text=True), ["a.txt", "b.md", "below/c.py", "d.py", "e"]),
        (Selection("*.md", as_text=True), ["b.md"]),
    ],
)
def test_glob_and_as_text_take_files(
    folder: Path, tmp_path: Path, selection: Selection, texts: list[str]
) -> None:
    (folder / "link").unlink()
    told: list[str] = []
    prepare([str(folder)], "byte", tmp_path / "out", selection=selection, on_problem=told.append)
    assert read_dataset(tmp_path / "out") == as_bytes(texts)
    assert not told


def test_a_glob_that_matches_nothing_is_said(folder: Path) -> None:
    with pytest.raises(BadInput, match=r"no text in this folder.*like \*\.rst"):
        find_sources([str(folder)], Selection("*.rst"))


def test_a_preparation_into_its_own_input_goes_on(folder: Path) -> None:
    (folder / "out.partial").mkdir()
    (folder / "out.partial" / "journal.jsonl").write_text("{}")
    assert [source.path.name for source in find_sources([str(folder)]).sources] == ["a.txt", "e.jsonl"]


@pytest.mark.parametrize("change", [-1000, +1000])
@pytest.mark.parametrize("packed", [False, True])
def test_a_source_that_changes_its_size_is_named(tmp_path: Path, change: int, packed: bool) -> None:
    path = tmp_path / "in.txt"
    data = random.Random(1).randbytes(4 << 20)
    path.write_bytes(gzip.compress(data) if packed else data)
    source = Source(path, "text", path.stat().st_size)

    def read_while_it_changes() -> None:
        with closing(SourceStream(source)) as stream:
            stream.read()
            with path.open("ab") as file:
                file.truncate(source.size + change)
            while stream.read():
                pass
            stream.finish()

    with pytest.raises(BadInput, match=r"in\.txt: .*(changed while it was read|ends too early|damaged)"):
        read_while_it_changes()


def test_an_input_that_shrinks_leaves_no_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text('{"text": "one line of many"}\n' * 200_000)
    read = SourceStream.read

    def shrinking(stream: SourceStream) -> bytes:
        data = read(stream)
        with path.open("ab") as file:
            file.truncate(29 * 1000)
        return data

    monkeypatch.setattr(SourceStream, "read", shrinking)
    with pytest.raises(BadInput, match=r"in\.jsonl"):
        prepare([str(path)], "byte", tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize("separator", [None, "", "==="])
@pytest.mark.parametrize(("name", "unit"), [("in.jsonl.zst", b"\n"), ("in.txt.zst", b" \n")])
def test_a_small_file_of_endless_blank_lines_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, unit: bytes, separator: str | None
) -> None:
    monkeypatch.setattr(sources, "_EXPANSION_FREE", 1 << 20)
    with zstd.ZstdFile(tmp_path / name, "w") as file:
        for _ in range(64):
            file.write(unit * (1 << 20))
    options = TextOptions(document_separator=separator, skip_bad=True)
    with pytest.raises(BadInput, match=rf"{name}: Zstandard data that unpack to more than 1000 times"):
        prepare([str(tmp_path / name)], "byte", tmp_path / "out", options)
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("line", [b'{"text": ""}\n', b'{"text": 5}\n'])
def test_a_small_file_of_endless_empty_records_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    monkeypatch.setattr(prepare_module, "_EMPTY_LIMIT", 1000)
    text = b'{"text": "seven bytes"}\n'
    (tmp_path / "in.jsonl").write_bytes(text + line * 1000)
    options = TextOptions(skip_bad=True)
    assert prepare([str(tmp_path / "in.jsonl")], "byte", tmp_path / "control", options)["documents"] == 1
    (tmp_path / "in.jsonl").write_bytes(text + line * 1100)
    with pytest.raises(BadInput, match=r"in\.jsonl: 1100 documents that are empty or bad, and 11 tokens"):
        prepare([str(tmp_path / "in.jsonl")], "byte", tmp_path / "out", options)


XZ_TEXT = b'{"text": "one"}\n'


def packed_with_dictionary(size: int) -> bytes:
    """An xz stream that says that it needs a dictionary of 2^size bytes; `size` is even."""
    data = lzma.compress(XZ_TEXT)
    header = bytearray(data[12 : 12 + 4 * (data[12] + 1)])
    header[header.index(b"\x21\x01") + 2] = 2 * (size - 12)
    header[-4:] = struct.pack("<I", zlib.crc32(header[:-4]))
    return data[:12] + bytes(header) + data[12 + len(header) :]


def test_xz_asks_for_no_memory_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.xz"
    path.write_bytes(packed_with_dictionary(26))
    assert prepare([str(path)], "byte", tmp_path / "control")["documents"] == 1
    path.write_bytes(packed_with_dictionary(30))
    with pytest.raises(BadInput, match=r"in\.jsonl\.xz: .*Memory usage limit"):
        prepare([str(path)], "byte", tmp_path / "out")


@pytest.mark.parametrize("padding", [0, 4, (1 << 20) + 4])
def test_several_xz_streams_are_read_with_what_pads_them(tmp_path: Path, padding: int) -> None:
    path = tmp_path / "in.jsonl.xz"
    path.write_bytes((lzma.compress(XZ_TEXT) + bytes(padding)) * 3)
    assert prepare([str(path)], "byte", tmp_path / "out")["documents"] == 3


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="a file of Linux")
def test_a_file_of_the_system_that_may_never_end_is_not_waited_for(tmp_path: Path) -> None:
    """All sizes in /proc are 0, and reading some of it (kmsg) waits for what may come."""
    (tmp_path / "in.txt").symlink_to("/proc/self/environ")
    with pytest.raises(BadInput, match=r"in\.txt: a file of the kernel"):
        prepare([str(tmp_path / "in.txt")], "byte", tmp_path / "out")


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = Path(os.fsdecode(bytes(tmp_path) + b"/\xff.txt"))
    path.write_text("text")
    with pytest.raises(BadInput, match="its name is not UTF-8") as caught:
        prepare([str(path)], "byte", tmp_path / "out")
    assert str(caught.value).isprintable()
    path.rename(tmp_path / "\xe9.txt")
    assert prepare([str(tmp_path / "\xe9.txt")], "byte", tmp_path / "out")["documents"] == 1


def test_folders_without_end_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def walk(path: Path) -> None:
        walk(path)  # as Python 3.11 does, a call a level

    monkeypatch.setattr(os, "walk", walk)
    with pytest.raises(BadInput, match="too deep"):
        find_sources([str(folder)])


def test_text_that_packs_well_is_read(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"text": "again"}\n' * 20_000))
    assert prepare([str(tmp_path / "in.jsonl.gz")], "byte", tmp_path / "out")["documents"] == 20_000


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize(
    "form", ['{{"text": "b", "score": {}}}', '{{"text": {}}}', '{{"a": [1, {}], "text": "b"}}']
)
def test_a_line_with_a_number_that_is_none_is_named(tmp_path: Path, value: str, form: str) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a NaN is fine, here"}\n' + form.format(value) + "\n")
    with pytest.raises(BadInput, match=rf"in\.jsonl, line 2: not JSON: {value} is no number"):
        prepare([str(tmp_path / "in.jsonl")], "byte", tmp_path / "out")


def test_what_is_no_json_names_one_line_alone(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text('{"text": "a"}\n{"text": oops}\n')
    with pytest.raises(BadInput) as refused:
        prepare([str(tmp_path / "in.jsonl")], "byte", tmp_path / "out")
    assert "line 2" in str(refused.value)
    assert "line 1" not in str(refused.value)
