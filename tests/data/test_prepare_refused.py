"""What cannot be prepared is refused in one line that names it, and nothing is left behind."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from backports import zstd

from gptbridge import files
from gptbridge.data.prepare import TextOptions, prepare
from gptbridge.data.tokenizers.training import train_tokenizer
from gptbridge.errors import BadInput, UsageError
from tests.data.prepared import as_bytes, jsonl, library_texts, read_dataset

NOT_EVEN_ROOT_READS = Path("/proc/sys/vm/compact_memory")


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return library_texts()


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 1.0])
def test_truncated_archives_are_refused(
    tmp_path: Path, texts: list[str], compress: Callable[[bytes], bytes], share: float
) -> None:
    data = compress(jsonl(texts))
    cut = data[: min(int(len(data) * share), len(data) - 1)]
    (tmp_path / "in.jsonl.gz").write_bytes(cut)
    with pytest.raises(BadInput, match=r"in\.jsonl\.gz: the \w+ data ends too early"):
        prepare([str(tmp_path / "in.jsonl.gz")], "byte", tmp_path / "out", TextOptions(skip_bad=True))
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl.gz"]


@pytest.mark.parametrize("compress", [gzip.compress, zstd.compress, bz2.compress, lzma.compress])
def test_damaged_archives_are_refused(
    tmp_path: Path, texts: list[str], compress: Callable[[bytes], bytes]
) -> None:
    data = bytearray(compress(jsonl(texts)))
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    (tmp_path / "in.jsonl").write_bytes(data)
    with pytest.raises(BadInput, match=r"in\.jsonl"):
        prepare([str(tmp_path / "in.jsonl")], "byte", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("in.csv", b"a,b", "not known as text"),
        ("in.jsonl.zst", b"<html>not found</html>", "not compressed, in spite of its name"),
        ("in.jsonl.zst", b"version https://git-lfs", "not compressed, in spite of its name"),
        ("in.jsonl", b"", "no document in the input"),
        ("in.jsonl", b"\n\n", "no document in the input"),
        ("in.txt", b"", "no document in the input"),
    ],
)
def test_files_without_text_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(BadInput, match=message):
        prepare([str(tmp_path / name)], "byte", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(not NOT_EVEN_ROOT_READS.exists(), reason="a file of Linux")
def test_an_input_that_cannot_be_opened_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_is_kernels", lambda status: False)  # it stands for any such file
    path = tmp_path / "in.txt"
    path.symlink_to(NOT_EVEN_ROOT_READS)
    for work in (
        lambda: prepare([str(path)], "byte", tmp_path / "out"),
        lambda: train_tokenizer([str(path)], 300, tmp_path / "out"),
    ):
        with pytest.raises(BadInput, match=r"in\.txt: Permission denied"):
            work()
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.txt"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "endless", "folder", "dangling", "loop"])
def test_what_is_not_a_file_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "in.txt"
    make: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(path),
        "endless": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "dangling": lambda: path.symlink_to("nowhere"),
        "loop": lambda: path.symlink_to(path),
    }
    make[kind]()
    with pytest.raises(BadInput, match=r"in\.txt"):
        prepare([str(path)], "byte", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in.txt"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["in.txt", "in.jsonl"])
def test_a_file_that_claims_8_gb_is_refused_at_once(tmp_path: Path, name: str) -> None:
    with (tmp_path / name).open("wb") as file:
        file.truncate(8 << 30)
    with pytest.raises(BadInput, match="line 1: too long"):
        prepare([str(tmp_path / name)], "byte", tmp_path / "out")


def test_an_existing_dataset_is_kept_unless_told(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("old")
    prepare([str(tmp_path / "in.txt")], "byte", tmp_path / "out")
    (tmp_path / "in.txt").write_text("new")
    with pytest.raises(UsageError, match="exists already"):
        prepare([str(tmp_path / "in.txt")], "byte", tmp_path / "out")
    assert read_dataset(tmp_path / "out") == as_bytes(["old"])
    prepare([str(tmp_path / "in.txt")], "byte", tmp_path / "out", overwrite=True)
    assert read_dataset(tmp_path / "out") == as_bytes(["new"])


@pytest.mark.parametrize("made", [True, False])
def test_an_output_that_names_a_folder_is_refused(tmp_path: Path, made: bool) -> None:
    (tmp_path / "in.txt").write_text("text")
    if made:
        (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=r"a folder.*--output .*out/corpus"):
        prepare([str(tmp_path / "in.txt")], "byte", f"{tmp_path}/out/")
    assert {path.name for path in tmp_path.rglob("*")} - {"out"} == {"in.txt"}
