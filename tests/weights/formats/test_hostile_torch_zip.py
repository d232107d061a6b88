"""Zip archives and torch views that lie; the archives that torch writes are tested beside torch itself."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from gptbridge.weights.formats.zip_directory import CENTRAL, CENTRAL_MARK, END, END_MARK, LOCAL
from tests.weights.formats.conftest import Check, assert_opens
from tests.weights.formats.containers import tensor_pickle, torch_zip

STORAGE = np.arange(12, dtype="f4").tobytes()
GOOD = torch_zip(tensor_pickle(), {"0": STORAGE})
ZIP = {"archive/data.pkl": pickle.dumps({}, 2), "archive/version": b"3\n"}


def archive(members: list[tuple[str, bytes]], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as file:
        for name, content in members:
            file.writestr(zipfile.ZipInfo(name) if "\\" not in name else name, content, compression)
    return buffer.getvalue()


def patched(content: bytes, mark: bytes, offset: int, value: bytes, which: int = 0) -> bytes:
    """Overwrite a field of the `which`-th header that starts with `mark`."""
    position = -1
    for _ in range(which + 1):
        position = content.index(mark, position + 1)
    return content[: position + offset] + value + content[position + offset + len(value) :]


def test_the_good_one_opens(tmp_path: Path) -> None:
    path = tmp_path / "good.pt"
    path.write_bytes(GOOD)
    assert_opens(path)


MEMBERS = [*ZIP.items()]
LAYOUTS = {
    "duplicate": (archive([*MEMBERS, MEMBERS[1]]), "appears twice"),
    "differently cased": (archive([*MEMBERS, ("ARCHIVE/data.pkl", b"")]), "appears twice"),
    "absolute": (archive([*MEMBERS, ("/etc/passwd", b"")]), "outside its folder"),
    "parent": (archive([*MEMBERS, ("archive/../../evil", b"")]), "outside its folder"),
    "two folders": (archive([*MEMBERS, ("other/x", b"")]), "one folder"),
    "no data.pkl": (archive([("archive/version", b"3\n")]), "torch.save did not write"),
    "escape code": (archive([*MEMBERS, ("archive/\x1b[2J", b"")]), "unusable name"),
    "a long name": (archive([*MEMBERS, ("archive/" + "n" * 2000, b"")]), "unusable name"),
    "TorchScript": (archive([*MEMBERS, ("archive/code/a.py", b"")]), "TorchScript"),
    "deflated": (archive(MEMBERS, zipfile.ZIP_DEFLATED), "is compressed"),
    "a bomb": (
        archive([("archive/data.pkl", pickle.dumps({}, 2)), ("archive/data/0", bytes(100 << 20))], 8),
        "is compressed",
    ),
    "any zip": (archive([("word/document.xml", b"<x/>")]), "torch.save did not write"),
    "junk before": (b"junk" + GOOD, "is no weight file"),
    "another zip before": (GOOD + GOOD, "not where the end record says"),
    "junk after": (GOOD + b"junk", "cut, or bytes follow"),
    "a comment": (GOOD[:-2] + b"\x04\x00junk", "cut, or bytes follow"),
    "first header only": (GOOD[: LOCAL.size], "does not end in a zip end record"),
    "big-endian": (
        archive([*MEMBERS, ("archive/byteorder", b"big")]),
        "big-endian",
    ),
    "bytes after the pickle": (torch_zip(tensor_pickle() + b"x", {"0": STORAGE}), "bytes follow the pickle"),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_archives(name: str, hostile: Check) -> None:
    hostile(*LAYOUTS[name])


@pytest.mark.parametrize("share", [0.0001, 0.25, 0.5, 0.75, 0.9999])
def test_cut_anywhere(share: float, hostile: Check) -> None:
    hostile(GOOD[: max(1, int(len(GOOD) * share))], "")


# Field offsets in APPNOTE.TXT's records.
HEADERS = {
    "encrypted": (CENTRAL_MARK, 8, b"\x01\x00", "is encrypted"),
    "encrypted in its header": (b"PK\x03\x04", 6, b"\x01\x00", "disagrees with the directory"),
    "a wrong CRC": (b"PK\x03\x04", 14, b"\1\2\3\4", "disagrees with the directory"),
    "another size in its header": (b"PK\x03\x04", 22, b"\1\2\3\4", "disagrees with the directory"),
    "another name in its header": (b"PK\x03\x04", 30, b"X", "disagrees with the directory"),
    "a lying size": (CENTRAL_MARK, 24, b"\xf0\x00\x00\x00", "two sizes"),
    "a huge size": (CENTRAL_MARK, 20, b"\xf0\xff\xff\x00" * 2, "disagrees with the directory"),
    "zip64 without its field": (CENTRAL_MARK, 20, b"\xff\xff\xff\xff" * 2, "lacks its zip64 sizes"),
    "an offset outside": (CENTRAL_MARK, 42, b"\xf0\xff\xff\xf0", "ends inside a zip member's header"),
    "an offset at another": (CENTRAL_MARK, 42, b"\x01\x00\x00\x00", "disagrees with the directory"),
    "another disk": (CENTRAL_MARK, 34, b"\x01\x00", "directory is malformed"),
    "a long extra field": (CENTRAL_MARK, 30, b"\xff\xff", "directory is malformed"),
    "a directory elsewhere": (END_MARK, 16, b"\x01\x00\x00\x00", "not where the end record says"),
    "too many entries": (END_MARK, 8, b"\xff\x00\xff\x00", "claims 255 zip members"),
    "too few entries": (END_MARK, 8, b"\x01\x00\x01\x00", "longer than its members"),
    "several disks": (END_MARK, 4, b"\x01\x00", "not where the end record says"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers(name: str, hostile: Check) -> None:
    mark, offset, value, reason = HEADERS[name]
    hostile(patched(GOOD, mark, offset, value), reason)


def test_two_members_over_the_same_bytes(hostile: Check) -> None:
    first = GOOD.index(b"PK\x03\x04")
    second = GOOD.index(b"PK\x03\x04", first + 1)
    # The second entry points into the first member's data, where a copy of its header stands.
    inner = GOOD[second : second + LOCAL.size + len("archive/byteorder")] + b"little"
    content = archive(
        [("archive/data.pkl", pickle.dumps({"x": b""}, 2) + inner), ("archive/byteorder", b"little")]
    )
    place = content.index(inner)
    hostile(patched(content, CENTRAL_MARK, 42, struct.pack("<I", place), which=1), "overlaps another")


def test_a_flipped_bit_in_a_weight(hostile: Check) -> None:
    position = GOOD.index(STORAGE) + 17
    flipped = GOOD[:position] + bytes([GOOD[position] ^ 4]) + GOOD[position + 1 :]
    hostile(flipped, "member archive/data/0 is damaged: its CRC-32 differs")


def test_zip64_members_open(tmp_path: Path) -> None:
    path = tmp_path / "good.pt"
    with zipfile.ZipFile(path, "w") as file:
        for name, content in {"a/data.pkl": tensor_pickle(), "a/data/0": STORAGE}.items():
            with file.open(name, "w", force_zip64=True) as member:
                member.write(content)
    assert_opens(path)


VIEWS = {
    "negative shape": ({"shape": (-1, 2)}, "negative"),
    "huge shape": ({"shape": (1 << 60,), "strides": (0,)}, "more elements than any file"),
    "10,000 dimensions": ({"shape": (1,) * 10_000, "strides": (1,) * 10_000}, "10000 dimensions"),
    "a fraction": ({"shape": (2.0,), "strides": (1,)}, "not a whole number"),
    "a trillion elements of stride 0": ({"shape": (10**12,), "strides": (0,)}, "over 16 times the bytes"),
    "negative stride": ({"strides": (-4, 1)}, "stride is negative"),
    "huge stride": ({"strides": (1 << 60, 1)}, "stride is negative, huge"),
    "stride beyond": ({"strides": (5, 1)}, "leaves its storage"),
    "too few strides": ({"strides": (4,)}, "another number of strides"),
    "negative offset": ({"offset": -1}, "leaves its storage"),
    "offset beyond": ({"offset": 1}, "leaves its storage"),
    "huge offset": ({"offset": 1 << 61}, "leaves its storage"),
    "a storage too short": ({"count": 13}, "should take 52 bytes, the file gives 48"),
    "a storage of another type": ({"storage": "DoubleStorage"}, "should take 96 bytes, the file gives 48"),
    "a storage of 8 GB": ({"count": 1 << 31}, "should take 8589934592 bytes"),
    "a negative storage": ({"count": -1}, "-1 elements"),
    "a missing storage": ({"key": "7"}, "its storage is missing"),
    "a storage up the tree": ({"key": "../data.pkl"}, "its storage is missing"),
    "an unknown storage type": ({"storage": "QUInt8Storage"}, "names torch.QUInt8Storage"),
    "conjugate": ({"metadata": {"conj": True}}, "conj is still to be applied"),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views(name: str, hostile: Check) -> None:
    changes, reason = VIEWS[name]
    hostile(torch_zip(tensor_pickle(**changes), {"0": STORAGE}), reason)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"shape": (4, 3), "strides": (1, 4)},
        {"shape": (2, 2), "strides": (4, 1), "offset": 6},
        {"shape": (5, 3, 4), "strides": (0, 4, 1)},
        {"shape": (0, 1 << 40), "strides": (1 << 40, 1)},
        {"shape": (), "strides": (), "offset": 11},
        {"shape": (1, 12), "strides": (999, 1)},
    ],
)
def test_views_that_fit_open(changes: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "good.pt"
    path.write_bytes(torch_zip(tensor_pickle(**changes), {"0": STORAGE}))  # type: ignore[arg-type]
    assert_opens(path)


def test_one_storage_of_two_types(hostile: Check) -> None:
    first, second = tensor_pickle(name="a"), tensor_pickle(name="b", storage="IntStorage")
    both = b"\x80\x02}(" + first[3:-2] + second[3:-2] + b"u."
    hostile(torch_zip(both, {"0": STORAGE}), "two types or sizes")


def test_the_directory_of_members_is_not_endless(hostile: Check) -> None:
    entry = CENTRAL.pack(CENTRAL_MARK, 20, 20, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"a"
    directory = entry * 200_000
    end = END.pack(END_MARK, 0, 0, 0xFFFE, 0xFFFE, len(directory), 4, 0)
    hostile(b"PK\x03\x04" + directory + end, "")
