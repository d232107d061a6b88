"""Damaged and malicious .npy and .npz of PaddleNLP: refused in one line that names the file."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptbridge.data.dataset import open_dataset
from tests.data.refusals import DOCUMENTS, facts_or_refusal, refusal
from tests.data.token_files import write_paddlenlp

pytestmark = pytest.mark.timeout(60)


def npy(header: str | bytes, body: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    text = header.encode() if isinstance(header, str) else header
    size = struct.pack("<H" if version == b"\x01\x00" else "<L", len(text))
    return b"\x93NUMPY" + version + size + text + body


def saved(array: object, *, pickled: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(array), allow_pickle=pickled)
    return file.getvalue()


GOOD = "{'descr': '<u2', 'fortran_order': False, 'shape': (12,), }\n"

HOSTILE_NPY = {
    "object": saved(np.array([1, "x", None], object), pickled=True),
    "float": saved(np.arange(12.0)),
    "complex": saved(np.arange(12) * 1j),
    "bool": saved(np.zeros(12, bool)),
    "text": saved(np.array(["a", "b"])),
    "structured": saved(np.zeros(12, [("a", "<u2")])),
    "two dimensions": saved(np.zeros((3, 4), np.uint16)),
    "no dimension": saved(np.uint16(3)),
    "expression": npy("__import__('os').system('touch /tmp/run')" + GOOD, bytes(24)),
    "call in the shape": npy(GOOD.replace("12", "int('12')"), bytes(24)),
    "arithmetic": npy(GOOD.replace("12", "9**9**9"), bytes(24)),
    "deep": npy("(" * 4000, bytes(24)),
    "negative": npy(GOOD.replace("12", "-12"), bytes(24)),
    "huge": npy(GOOD.replace("12", "9" * 18), bytes(24)),
    "digits": npy(GOOD.replace("12", "9" * 3000), bytes(24)),
    "not UTF-8": npy(b"\xff\xfe{}", bytes(24)),
    "header beyond the file": npy(GOOD)[:30],
    "header of 4 GB": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(64),
    "version": npy(GOOD, bytes(24), b"\x09\x00"),
    "short": npy(GOOD, bytes(23)),
    "long": npy(GOOD, bytes(26)),
    "nothing": b"\x93NUMPY",
    "html": b"<!DOCTYPE html><html>not found</html>",
    "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
}


@pytest.mark.parametrize("content", HOSTILE_NPY.values(), ids=HOSTILE_NPY)
def test_ids_that_are_no_array_of_integers(tmp_path: Path, content: bytes) -> None:
    write_paddlenlp(tmp_path / "set", DOCUMENTS)
    (tmp_path / "set_ids.npy").write_bytes(content)
    assert "set_ids.npy" in refusal(tmp_path / "set")
    assert not Path("/tmp/run").exists()


@pytest.mark.parametrize("version", [b"\x01\x00", b"\x02\x00"])
def test_the_benign_neighbours_of_those_headers_load(tmp_path: Path, version: bytes) -> None:
    write_paddlenlp(tmp_path / "set", DOCUMENTS)
    for header in (GOOD, GOOD.replace("12", "12L"), GOOD.replace("False", "True"), GOOD.strip().ljust(200)):
        (tmp_path / "set_ids.npy").write_bytes(npy(header, bytes(24), version))
        assert open_dataset(str(tmp_path / "set")).tokens == 12


def write_idx(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


LENS = np.array([3, 1, 6, 2], np.int32)

HOSTILE_IDX: dict[str, tuple[Callable[[Path], object], str]] = {
    "no lens": (lambda path: np.savez(path, docs=np.arange(5)), "holds no 'lens'"),
    "negative": (lambda path: np.savez(path, lens=np.array([15, -3])), "document 1 has length -3"),
    "sum": (lambda path: np.savez(path, lens=LENS[:3]), "add up to 10, the ids are 12"),
    "overflow": (lambda path: np.savez(path, lens=np.array([2**62, 2**62, 12])), f"has {2**62} tokens"),
    "unsigned": (
        lambda path: np.savez(path, lens=np.array([2**64 - 1, 13], np.uint64)),
        "tokens, the ids 12",
    ),
    "float": (lambda path: np.savez(path, lens=LENS.astype(float)), "array header"),
    "object": (lambda path: np.savez(path, lens=np.array([None])), "array header"),
    "docs": (lambda path: np.savez(path, lens=LENS, docs=np.array([0, 2, 1, 4])), "'docs'"),
    "docs end": (lambda path: np.savez(path, lens=LENS, docs=np.array([0, 3])), "'docs'"),
    "no docs": (lambda path: np.savez(path, lens=LENS, docs=np.zeros(0, int)), "'docs'"),
    "not a zip": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "not a .npz"),
    "empty zip": (lambda path: write_idx(path), "holds no 'lens'"),
    "garbage": (lambda path: write_idx(path, lens=b"garbage"), "begins with"),
    "short": (lambda path: write_idx(path, lens=npy(GOOD, bytes(20))), "do not fill"),
}


@pytest.mark.parametrize(("write", "said"), HOSTILE_IDX.values(), ids=HOSTILE_IDX)
def test_an_index_that_disagrees(tmp_path: Path, write: Callable[[Path], object], said: str) -> None:
    write_paddlenlp(tmp_path / "set", DOCUMENTS)
    write(tmp_path / "set_idx.npz")
    line = refusal(tmp_path / "set")
    assert said in line
    assert "set_idx.npz" in line


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_appears_twice(tmp_path: Path) -> None:
    write_paddlenlp(tmp_path / "set", DOCUMENTS)
    with zipfile.ZipFile(tmp_path / "set_idx.npz", "a") as archive:
        archive.writestr("lens.npy", saved(LENS))
    assert "'lens' twice" in refusal(tmp_path / "set")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    write_paddlenlp(tmp_path / "set", DOCUMENTS)
    with zipfile.ZipFile(tmp_path / "set_idx.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        count = 40_000_000
        header = f"{{'descr': '<i4', 'fortran_order': False, 'shape': ({count},), }}\n"
        archive.writestr("lens.npy", npy(header, bytes(4 * count)))
    assert (tmp_path / "set_idx.npz").stat().st_size < 1 << 20
    assert "unpacks to 160000" in refusal(tmp_path / "set")


@given(st.integers(0, 10**6), st.integers(1, 255))
@settings(deadline=None, max_examples=150)
def test_no_byte_of_an_npz_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, place: int, change: int
) -> None:
    prefix = tmp_path_factory.mktemp("flip") / "set"
    write_paddlenlp(prefix, DOCUMENTS)
    path = prefix.with_name("set_idx.npz")
    if place % 2:
        np.savez_compressed(path, lens=LENS, docs=np.arange(5))
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= change
    path.write_bytes(content)
    facts = facts_or_refusal(prefix)
    assert facts.isprintable() if isinstance(facts, str) else facts.tokens == 12
