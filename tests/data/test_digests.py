"""The digest sees any change of any token, is computed once, and needs no folder that can be written."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from gptbridge.data import digests
from gptbridge.data.dataset import open_dataset
from tests.data.token_files import write_megatron, write_paddlenlp

IDS = np.arange(3_000_000).astype(np.uint16)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    IDS.tofile(tmp_path / "x.bin")
    return tmp_path / "x.bin"


def digest(path: Path) -> str:
    return open_dataset(str(path)).digest


def put(path: Path, position: int, value: int) -> None:
    """Write one token in place; the file keeps its size and the time of its last change."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(2 * position)
        file.write(struct.pack("<H", value))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_change_of_any_token_is_seen(path: Path) -> None:
    seen = {digest(path)}
    for position in (0, 1, 4096, 5_000, 1_234_567, 2_999_998, 2_999_999):
        put(path, position, int(IDS[position]) ^ 1)
        seen.add(digest(path))
    assert len(seen) == 8


def test_documents_count_too(tmp_path: Path) -> None:
    write_megatron(tmp_path / "a", [[1, 2], [3]])
    write_megatron(tmp_path / "b", [[1], [2, 3]])
    assert digest(tmp_path / "a") != digest(tmp_path / "b")


@pytest.mark.parametrize("ids", [[1, 2, 3], [1, 70_000, 3], [65_535, 65_536]])
def test_the_format_does_not_count(tmp_path: Path, ids: list[int]) -> None:
    write_megatron(tmp_path / "m", [ids], "int64")
    write_paddlenlp(tmp_path / "p", [ids], "int32")
    assert digest(tmp_path / "m") == digest(tmp_path / "p")
    write_megatron(tmp_path / "other", [[i ^ 65_536 for i in ids]], "int64")
    assert digest(tmp_path / "other") != digest(tmp_path / "m")


def test_it_is_computed_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = digest(path)
    monkeypatch.setattr(digests, "content_digest", lambda *_: "computed again")
    assert digest(path) == first
    put(path, 7, 1)
    assert digest(path) == "computed again"


def test_a_joined_folder_keeps_one_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path.parent / "y.bin").write_bytes(path.read_bytes())
    first = digest(path.parent)
    monkeypatch.setattr(digests, "content_digest", lambda *_: "computed again")
    assert digest(path.parent) == first
    put(path.parent / "y.bin", 7, 1)
    assert digest(path.parent) == "computed again"


@pytest.mark.parametrize("kept", ["{", "[]", '{"files": {}, "sha256": "x"}', "link", "folder", "pipe"])
def test_what_is_kept_is_never_trusted_blindly(path: Path, tmp_path: Path, kept: str) -> None:
    first = digest(path)
    keep = path.parent / ".x.bin.digest.json"
    content = json.loads(keep.read_text())
    keep.unlink()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    if kept == "link":
        keep.symlink_to(victim)
    elif kept == "folder":
        keep.mkdir()
    elif kept == "pipe":
        os.mkfifo(keep)
    else:
        keep.write_text(
            kept if kept != '{"files": {}, "sha256": "x"}' else json.dumps(content | {"sha256": "x"})
        )
    assert digest(path) == first
    assert victim.read_text() == "precious"


def test_a_folder_that_cannot_be_written_works(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(digests, "write_json", refused)
    first = digest(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["x.bin"]
    monkeypatch.undo()
    assert digest(path) == first
