"""safetensors headers, indexes of shards, and files of the file system that lie."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any

import pytest

from gptbridge.errors import BadInput
from gptbridge.weights.formats import WRITERS, open_weights, write_safetensors
from tests.weights.formats.conftest import Check, assert_opens, assert_refused, entry, make_array


def file_of(header: Any, data: bytes = bytes(8), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(**changes: Any) -> dict[str, Any]:
    return {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


EMPTY = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
TWO = {"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}
HEADERS: dict[str, tuple[bytes, str]] = {
    "longer than the file": (file_of(one(), length=1 << 40), "header"),
    "of 2 ** 64 - 1 bytes": (file_of(one(), length=(1 << 64) - 1), "header"),
    "of no bytes": (file_of(b"", b"{" + bytes(7)), "is not JSON"),
    "not JSON": (file_of(b'{"w": '), "is not JSON"),
    "a list": (file_of(b"{[]}"), "is not JSON"),
    "not UTF-8": (file_of(b'{"\xff": 1}'), "is not JSON"),
    "deep": (file_of(b'{"w":' * 100_000), "nests too deeply"),
    "NaN": (file_of(b'{"w": NaN}'), "NaN is not a number"),
    "a number of 10,000 digits": (file_of(b'{"w": ' + b"9" * 10_000 + b"}"), "is not JSON"),
    "a key twice": (file_of(b'{"w": 1, "w": 2}'), "'w' appears twice"),
    "5 MB": (file_of({"__metadata__": {"a": "b" * (5 << 20)}}), "allowed: at most 4194304"),
    "4 MB of brackets": (file_of(b'{"a":[' + b"[]," * 1_300_000 + b"[]]}"), "it holds more than"),
    "3 MB of zero-size tensors": (
        file_of(
            {f"{n:x}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for n in range(49_000)}, b"x"
        ),
        "1 bytes follow",
    ),
    "metadata of numbers": (file_of({"__metadata__": {"a": 1}}), "table of texts"),
    "an entry of text": (file_of({"w": "x"}), "malformed"),
    "another field": (file_of(one(auto_map="x")), "malformed"),
    "no dtype": (file_of({"w": {"shape": [2], "data_offsets": [0, 8]}}), "malformed"),
    "an unknown dtype": (file_of(one(dtype="F4")), "element type 'F4' is not known"),
    "a dtype of another size": (file_of(one(dtype="F64")), "takes 16 bytes, the file gives 8"),
    "a negative dimension": (file_of(one(shape=[-2])), "negative"),
    "two negative dimensions": (file_of(one(shape=[-1, -2])), "negative"),
    "a fraction": (file_of(one(shape=[2.0])), "not a whole number"),
    "a boolean": (file_of(one(shape=[True, 2])), "not a whole number"),
    "a text dimension": (file_of(one(shape=["2"])), "not a whole number"),
    "an overflow": (file_of(one(shape=[1 << 32, 1 << 32])), "more elements than any file"),
    "10,000 dimensions": (file_of(one(shape=[1] * 10_000)), "10000 dimensions"),
    "an offset outside": (file_of(one(data_offsets=[0, 9])), "outside the file"),
    "a negative offset": (file_of(one(data_offsets=[-8, 0])), "outside the file"),
    "offsets reversed": (file_of(one(data_offsets=[8, 0])), "outside the file"),
    "boolean offsets": (file_of(one(data_offsets=[False, 8])), "malformed"),
    "a hole": (file_of(one(data_offsets=[4, 8], shape=[1])), "leave a hole"),
    "an overlap": (
        file_of({**TWO, "b": {"dtype": "U8", "shape": [6], "data_offsets": [2, 8]}}),
        "overlap another's",
    ),
    "bytes after": (file_of(TWO), "4 bytes follow"),
    "an empty name": (file_of({"": one()["w"]}), "name is empty"),
    "a name of 1 MB": (file_of({"n" * (1 << 20): one()["w"]}), "1048576 characters"),
    "NUL in a name": (file_of({"a\0b": one()["w"]}), "control characters"),
    "an escape in a name": (file_of({"a\x1b[31mb": one()["w"]}), "control characters"),
    "a surrogate in a name": (file_of(b'{"\\ud800":' + json.dumps(one()["w"]).encode() + b"}"), "surrogate"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name: str, hostile: Check) -> None:
    hostile(*HEADERS[name])


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"__metadata__": {"format": "pt"}},
        {"a/b": one()["w"]},
        {**TWO, "b": {"dtype": "F16", "shape": [2, 1], "data_offsets": [4, 8]}},
        {"z": {"dtype": "F32", "shape": [0, 7], "data_offsets": [0, 0]}, **one()},
    ],
)
def test_good_headers(header: dict[str, Any], tmp_path: Path) -> None:
    size = max((e["data_offsets"][1] for n, e in header.items() if n != "__metadata__"), default=0)
    (tmp_path / "good").write_bytes(file_of(header, bytes(size)))
    assert_opens(tmp_path / "good")


OTHERS = {
    "empty": (b"", "is empty"),
    "one byte": (b"\n", "does not end"),
    "zeros": (bytes(100_000), "is no weight file"),
    "text": (b"Not found\n" * 10, "is no weight file"),
    "a web page": (b"<!DOCTYPE html><html>", "web page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "gzip": (b"\x1f\x8b\x08" + bytes(20), "compressed with gzip"),
    "tar": (bytes(257) + b"ustar\x00" + bytes(250), "tar archive"),
    "encrypted": (b"\xd8\x5e\x3a\x7f" + bytes(50), "encrypted MindSpore checkpoint"),
    "numpy": (b"\x93NUMPY\x01\x00", "NumPy"),
    "JSON": (b'{"a": 1}', "without a weight_map"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files(name: str, hostile: Check) -> None:
    hostile(*OTHERS[name])


@pytest.mark.parametrize("kind", sorted(WRITERS))
@pytest.mark.parametrize("share", [0.01, 0.25, 0.5, 0.75, 1.0])
def test_cut_files(kind: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / "cut"
    WRITERS[kind](path, [entry(name, "float32", make_array("float32", (30, 40))) for name in "ab"])
    content = path.read_bytes()
    path.write_bytes(content[: min(int(len(content) * share) + 1, len(content) - 1)])
    assert_refused(path, "")


# An index and its shards.


def index_of(folder: Path, weight_map: Any, **more: Any) -> Path:
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map, **more}))
    return path


SHARD = "model-1.safetensors"
PLACES = [
    "../model-1.safetensors",
    "/etc/model-1.safetensors",
    "folder/model-1.safetensors",
    "C:\\model-1.safetensors",
    "C:model-1.safetensors",
    "..\\model-1.safetensors",
    "https://example.org/model-1.safetensors",
    "model-1.safetensors\0",
    "model\x1b.safetensors",
    ".hidden.safetensors",
    "..",
    "",
    "model-1.py",
    3,
    None,
    ["model-1.safetensors"],
    True,
]


@pytest.mark.parametrize("place", PLACES)
def test_a_shard_is_a_plain_name(place: object, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    write_safetensors(tmp_path / SHARD, [entry("w", "float32", make_array("float32", (2,)))])
    write_safetensors(tmp_path / "set" / SHARD, [entry("w", "float32", make_array("float32", (2,)))])
    assert_refused(index_of(tmp_path / "set", {"w": place}), "the name of a weight file beside the index")


def test_shards_and_index_must_agree(tmp_path: Path) -> None:
    two = [entry(name, "float32", make_array("float32", (2,))) for name in "ab"]
    write_safetensors(tmp_path / SHARD, two)
    assert_opens(index_of(tmp_path, {"a": SHARD, "b": SHARD}, auto_map={"x": "evil.py"}))
    index = index_of(tmp_path, {"a": SHARD, "b": SHARD, "c": SHARD})
    with pytest.raises(BadInput, match="tensor 'c': is missing, though the index puts it here"):
        open_weights(index)
    index = index_of(tmp_path, {"a": SHARD})
    with pytest.raises(BadInput, match="tensor 'b': is here, though the index does not put it here"):
        open_weights(index)
    write_safetensors(tmp_path / "model-2.safetensors", two[1:])
    index = index_of(tmp_path, {"a": SHARD, "b": "model-2.safetensors"})
    with pytest.raises(BadInput, match="tensor 'b': is here"):
        open_weights(index)
    with pytest.raises(BadInput, match=r"absent.safetensors: cannot be opened: No such file"):
        open_weights(index_of(tmp_path, {"a": "absent.safetensors"}))
    assert_refused(index_of(tmp_path, []), "without a weight_map")
    assert_refused(index_of(tmp_path, {f"t{n}": f"{n}.bin" for n in range(5000)}), "names 5000 files")


# The file system.


def test_special_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    reasons = {"fifo": "is a FIFO", "zero": "is a character device", "folder": "is a folder"}
    reasons |= {"dangling": "No such file", "loop": "Too many levels", "absent": "No such file"}
    for name, reason in reasons.items():
        assert_refused(tmp_path / name, reason)
    with pytest.raises(BadInput, match="null"):
        open_weights("a\0b")


def test_a_sparse_file_that_claims_gigabytes(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(8 << 30)
    with pytest.raises(BadInput, match="is no weight file"):
        open_weights(tmp_path / "sparse")


def test_links_are_followed_for_reading(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "blob", [entry("w", "float32", make_array("float32", (2,)))])
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blob")
    assert_opens(tmp_path / "model.safetensors")


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_refusals_close_their_files(tmp_path: Path) -> None:
    before = open_files()
    (tmp_path / "bad").write_bytes(file_of(one(shape=[-2])))
    write_safetensors(tmp_path / SHARD, [entry("w", "float32", make_array("float32", (2,)))])
    index = index_of(tmp_path, {"w": SHARD, "v": "absent.bin"})
    for path in (tmp_path / "bad", index, tmp_path / SHARD):
        if path.name == SHARD:
            open_weights(path).close()
        else:
            with pytest.raises(BadInput):
                open_weights(path)
    assert open_files() == before
