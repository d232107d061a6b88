"""Which files are read, what is passed over, and what a file may do while it is read."""

from __future__ import annotations

import gzip
import random
from contextlib import closing
from pathlib import Path

import pytest
from backports import zstd

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
