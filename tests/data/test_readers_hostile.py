"""Damaged and malicious token files: refused in one line that names the file, and nothing else."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptbridge.data.dataset import open_dataset
from gptbridge.data.inspection import inspect_dataset
from tests.data.refusals import DOCUMENTS, facts_or_refusal, refusal
from tests.data.token_files import write_megatron, write_paddlenlp

COUNT = len(DOCUMENTS)
LENGTHS, POINTERS, BOUNDS = 34, 34 + 4 * COUNT, 34 + 12 * COUNT  # where the arrays of an .idx begin

pytestmark = pytest.mark.timeout(60)


def put(path: Path, offset: int, layout: str, value: int) -> None:
    content = bytearray(path.read_bytes())
    struct.pack_into(layout, content, offset, value)
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("offset", "layout", "value", "said"),
    [
        (0, "B", 0x4E, "begins with"),
        (9, "<Q", 2, "version 2"),
        (17, "B", 6, "type code 6"),  # float
        (17, "B", 255, "type code 255"),
        (17, "B", 4, "counts 12 tokens where the .bin holds 6"),  # int32 instead of uint16
        (18, "<Q", COUNT + 1, "sequences"),
        (18, "<Q", 2**64 - 1, "sequences"),
        (26, "<Q", 0, "document bounds"),
        (26, "<Q", 2**61, "document bounds"),
        (LENGTHS, "<i", -1, "sequence 0 has length -1"),
        (LENGTHS, "<i", 2**31 - 1, "counts"),
        (LENGTHS + 4, "<i", 2, "counts"),
        (POINTERS, "<q", 2, "sequence 0 points to byte 2"),
        (POINTERS + 8, "<q", -6, "sequence 1 points to byte -6"),
        (POINTERS + 8, "<q", 5, "sequence 1 points to byte 5"),  # unaligned
        (POINTERS + 16, "<q", 6, "sequence 2 points to byte 6"),  # overlaps
        (POINTERS + 24, "<q", 2**62, f"sequence 3 points to byte {2**62}"),
        (BOUNDS, "<q", 1, "document bounds"),
        (BOUNDS + 8, "<q", 3, "document 1 ends before it begins"),
        (BOUNDS + 8, "<q", -1, "document 0 ends before it begins"),
        (BOUNDS + 8 * COUNT, "<q", COUNT + 1, "document bounds"),
    ],
)
def test_a_wrong_field_of_a_megatron_index(
    tmp_path: Path, offset: int, layout: str, value: int, said: str
) -> None:
    write_megatron(tmp_path / "set", DOCUMENTS)
    inspect_dataset(str(tmp_path / "set"))
    put(tmp_path / "set.idx", offset, layout, value)
    line = refusal(tmp_path / "set")
    assert said in line
    assert "set.idx" in line


@given(st.integers(0, BOUNDS + 8 * COUNT + 7), st.integers(0, 255))
@settings(deadline=None, max_examples=150)
def test_no_byte_of_an_index_breaks_the_reader(
    tmp_path_factory: pytest.TempPathFactory, offset: int, value: int
) -> None:
    prefix = tmp_path_factory.mktemp("flip") / "set"
    write_megatron(prefix, DOCUMENTS)
    put(prefix.with_name("set.idx"), offset, "B", value)
    facts = facts_or_refusal(prefix)
    assert facts.isprintable() if isinstance(facts, str) else facts.tokens in (12, 24)


@pytest.mark.parametrize("ending", ["bin", "idx"])
@pytest.mark.parametrize("keep", [0, 1, 0.25, 0.5, 0.75, -1])
def test_truncated_megatron_files(tmp_path: Path, ending: str, keep: float) -> None:
    write_megatron(tmp_path / "set", DOCUMENTS)
    file = tmp_path / f"set.{ending}"
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    assert "set." in refusal(tmp_path / "set")


def test_a_longer_bin_and_a_missing_one(tmp_path: Path) -> None:
    write_megatron(tmp_path / "set", DOCUMENTS)
    with (tmp_path / "set.bin").open("ab") as file:
        file.write(bytes(2))
    assert "counts 12 tokens where the .bin holds 13" in refusal(tmp_path / "set")
    (tmp_path / "set.bin").unlink()
    assert "set.bin: cannot be opened: No such file" in refusal(tmp_path / "set")


def test_a_dataset_without_a_token(tmp_path: Path) -> None:
    write_megatron(tmp_path / "set", [[], []])
    assert "set.bin: is empty" in refusal(tmp_path / "set")
    (tmp_path / "raw.bin").touch()
    assert "raw.bin: is empty" in refusal(tmp_path / "raw.bin")
    write_paddlenlp(tmp_path / "p", [[]])
    assert "holds no token" in refusal(tmp_path / "p")


def test_an_index_of_nothing_but_empty_sequences_costs_no_memory(tmp_path: Path) -> None:
    count = 200_000_000
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, count, 2)
    with (tmp_path / "set.idx").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + 12 * count + 16)  # sparse
    (tmp_path / "set.bin").write_bytes(bytes(24))
    assert f"{count} sequences of 12 tokens" in refusal(tmp_path / "set")


def test_a_negative_token_and_one_beyond_the_vocabulary(tmp_path: Path) -> None:
    write_megatron(tmp_path / "set", [[1, 2], [3, -7]], "int32")
    assert "token -7 in document 1" in refusal(tmp_path / "set")
    write_prepared(tmp_path / "p", {"identity": "x", "vocab_size": 12})
    assert "token 12 in document 3" in refusal(tmp_path / "p")


def write_prepared(prefix: Path, tokenizer: object, **changes: Any) -> None:
    import json

    write_megatron(prefix, DOCUMENTS)
    content = {"format": "megatron", "documents": COUNT, "tokens": 12, "tokenizer": tokenizer} | changes
    prefix.with_name(f"{prefix.name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("tokenizer", "changes", "said"),
    [
        ({"identity": "x", "vocab_size": 50}, {"documents": 5}, "tells of 5 documents, the .idx of 4"),
        ({"identity": "x", "vocab_size": 50}, {"tokens": "12"}, "tells of 12 tokens"),
        ({"identity": "x", "vocab_size": "50"}, {}, "wrong type"),
        ({"identity": "x", "vocab_size": True}, {}, "wrong type"),
        ({"identity": 5, "vocab_size": 50}, {}, "wrong type"),
        ({}, {}, "is missing"),
    ],
)
def test_a_description_that_does_not_fit(
    tmp_path: Path, tokenizer: object, changes: dict[str, Any], said: str
) -> None:
    write_prepared(tmp_path / "set", tokenizer, **changes)
    line = refusal(tmp_path / "set")
    assert said in line
    assert "set.json" in line


def test_a_description_that_is_no_json_and_one_of_something_else(tmp_path: Path) -> None:
    write_megatron(tmp_path / "set", DOCUMENTS)
    (tmp_path / "set.json").write_text("{" * 100_000)
    assert "set.json" in refusal(tmp_path / "set")
    (tmp_path / "set.json").write_text('{"title": "notes of mine"}')
    assert open_dataset(str(tmp_path / "set")).tokenizer_identity is None


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"PK\x03\x04", "a zip archive"),
        (b"\x93NUMPY\x01\x00", "a NumPy array"),
        (b"MMIDIDX\x00\x00\x01", "a Megatron index"),
        (b"<!DOCTYPE html>.", "HTML"),
        (b"version https://git-lfs.github.c", "Git LFS"),
        (b"\x80\x02\x8a\x0a", "a pickle"),
        (b"\x80\x02}q\x00(X\x01\x00", "a pickle"),
        (b"\x80\x04\x95\x0a\x00\x01\x00\x00\x00\x00\x00}", "a pickle"),
        (b"\x80\x02ccollections\nOrderedDict", "a pickle"),
        (b'\x40\x02\x00\x00\x00\x00\x00\x00{"wte.weight"', "a safetensors file"),
        ((20240326).to_bytes(4, "little") + b"\x03", "weights of llm.c"),
    ],
)
def test_another_format_under_a_raw_name(tmp_path: Path, start: bytes, said: str) -> None:
    (tmp_path / "x.bin").write_bytes(start.ljust(200, b"\0"))
    assert said in refusal(tmp_path / "x.bin")


def test_a_raw_file_of_an_odd_number_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(7))
    assert "7 bytes are no whole number of" in refusal(tmp_path / "x.bin")


def test_a_prepared_dataset_that_lost_its_index_is_not_taken_for_a_raw_file(tmp_path: Path) -> None:
    write_prepared(tmp_path / "set", {"identity": "x", "vocab_size": 50})
    (tmp_path / "set.tokenizer").mkdir()
    (tmp_path / "set.idx").unlink()
    assert "set.idx: is missing" in refusal(tmp_path / "set")


MEMBERS = ["set.bin", "set.idx", "set_ids.npy", "set_idx.npz"]


@pytest.mark.parametrize("name", MEMBERS)
@pytest.mark.parametrize("kind", ["fifo", "folder", "dangling", "loop", "zero"])
def test_a_file_that_is_no_file(tmp_path: Path, name: str, kind: str) -> None:
    if name.startswith("set_"):
        write_paddlenlp(tmp_path / "set", DOCUMENTS)
    else:
        write_megatron(tmp_path / "set", DOCUMENTS)
    path = tmp_path / name
    path.unlink()
    make: dict[str, Callable[[], object]] = {
        "fifo": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "dangling": lambda: path.symlink_to(tmp_path / "nowhere"),
        "loop": lambda: path.symlink_to(path),
        "zero": lambda: path.symlink_to("/dev/zero"),
    }
    make[kind]()
    assert name in refusal(tmp_path / "set")


@pytest.mark.parametrize("path", ["nowhere", "no/where", "with\0nul", "\x1b[2J", "text.txt", "."])
def test_a_path_without_a_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    (tmp_path / "text.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    line = refusal(path)
    assert "token dataset" in line
    assert "PREFIX" in line


def test_eight_sparse_gigabytes_cost_nothing_to_open(tmp_path: Path) -> None:
    with (tmp_path / "x.bin").open("wb") as file:
        file.write(bytes(range(100)))
        file.truncate(8 << 30)
    code = (
        "import sys; from gptbridge.data.dataset import open_dataset;"
        "d = open_dataset(sys.argv[1]); d.source.read(10**9, 10**9 + 1000);"
        # not ru_maxrss, which starts at what the forking parent held
        "peak = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')];"
        "print(d.tokens, peak[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "x.bin")],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_CPU, (10, 10)),
    )
    tokens, kilobytes = map(int, done.stdout.split())
    assert tokens == 4 << 30
    assert kilobytes < 256 << 10
