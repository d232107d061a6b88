"""Prepared datasets hold exactly the tokens of a plain pipeline, whatever the format and the workers."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from backports import zstd
from hypothesis import given, settings
from hypothesis import strategies as st

from gptbridge.data import blocks, encoding
from gptbridge.data.prepare import TextOptions, prepare
from gptbridge.data.tokenizers.training import train_tokenizer
from gptbridge.errors import BadInput
from tests.data.prepared import as_bytes, facts, jsonl, library_texts, read_dataset, whole


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return library_texts()


@pytest.fixture(scope="module")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    (folder / "corpus.jsonl").write_bytes(jsonl(texts))
    train_tokenizer([str(folder / "corpus.jsonl")], 2000, folder / "trained")
    return folder / "trained"


def test_tokens_are_those_of_a_plain_pipeline(tmp_path: Path, texts: list[str], bpe_folder: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(jsonl(texts))
    prepare(
        [str(tmp_path / "in.jsonl")], str(bpe_folder), tmp_path / "out", TextOptions(append_end_of_text=True)
    )
    plain = tokenizers.Tokenizer.from_file(str(bpe_folder / "tokenizer.json"))
    plain.encode_special_tokens = True
    end = plain.token_to_id("<|endoftext|>")
    expected = [[*plain.encode(text, add_special_tokens=False).ids, end] for text in texts]
    assert read_dataset(tmp_path / "out") == expected
    written = facts(tmp_path / "out")
    assert written["tokens"] == sum(map(len, expected))
    assert written["documents"] == len(texts) > 1000
    assert written["dtype"] == "uint16"


def test_any_number_of_workers_writes_the_same_bytes(
    tmp_path: Path, texts: list[str], bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for i in range(4):
        Path(f"{i}.jsonl").write_bytes(jsonl(texts) * 3)
    inputs = [f"{i}.jsonl" for i in range(4)]
    results = []
    for workers in (1, 2, 3):
        folder = tmp_path / f"workers{workers}"
        prepare(inputs, str(bpe_folder), folder / "out", workers=workers)
        results.append(whole(folder / "out"))
    assert results[0] == results[1] == results[2]
    assert set(results[0]) > {"out.bin", "out.idx", "out.json", "out.tokenizer/tokenizer.json"}
    assert not any("partial" in name for name in results[0])


SKIPPABLE = struct.pack("<II", 0x184D2A53, 5) + b"hello"
COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    "in.jsonl": lambda data: data,
    "in.jsonl.gz": gzip.compress,
    "in.jsonl.zst": zstd.compress,
    "in.jsonl.bz2": bz2.compress,
    "in.jsonl.xz": lzma.compress,
    "in.ndjson": gzip.compress,  # another name than its content's
    "in.jsonl.gzip.jsonl": zstd.compress,
    "frames.jsonl.zst": lambda data: (
        SKIPPABLE + zstd.compress(data[:999]) + SKIPPABLE + zstd.compress(data[999:])
    ),
    "members.jsonl.gz": lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]),
    "IN.JSONL": lambda data: data,
}


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_compression_is_told_by_content(tmp_path: Path, texts: list[str], name: str) -> None:
    (tmp_path / name).write_bytes(COMPRESSIONS[name](jsonl(texts[:300])))
    prepare([str(tmp_path / name)], "byte", tmp_path / "out")
    assert read_dataset(tmp_path / "out") == as_bytes(texts[:300])


def test_folders_are_read_recursively_in_order(tmp_path: Path) -> None:
    source = tmp_path / "in"
    for name, text in {"b.txt": "2", "a/z.txt": "1", "a/a.jsonl": '{"text": "0"}', "c.csv": "no"}.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(text)
    prepare([str(source), str(source / "b.txt")], "byte", tmp_path / "out")
    assert read_dataset(tmp_path / "out") == as_bytes(["0", "1", "2", "2"])


def test_links_are_followed_for_reading(tmp_path: Path) -> None:
    (tmp_path / "blob").write_text("text")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").symlink_to(tmp_path / "blob")
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    prepare([str(tmp_path / "in")], "byte", tmp_path / "out")
    assert read_dataset(tmp_path / "out") == as_bytes(["text"])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'\xef\xbb\xbf{"text": "a"}\n', ["a"]),
        (b'{"text": "a"}\r\n{"text": "b"}\r\n', ["a", "b"]),
        (b'\n\n{"text": "a"}\n  \n{"text": "b"}', ["a", "b"]),
        ('{"text": "a\u2028b\u0085c"}\n'.encode(), ["a\u2028b\u0085c"]),
        (b'{"text": "<|endoftext|>"}\n', ["<|endoftext|>"]),
        (b'{"text": "\\ud83d\\ude00\\u0000"}\n', ["\U0001f600\x00"]),
        (b'{"text": ""}\n{"text": " "}\n', [" "]),
        (b'{"text": "first", "text": "last"}\n', ["last"]),
    ],
)
def test_lines_of_json(tmp_path: Path, data: bytes, expected: list[str]) -> None:
    (tmp_path / "in.jsonl").write_bytes(data)
    prepare([str(tmp_path / "in.jsonl")], "byte", tmp_path / "out")
    assert read_dataset(tmp_path / "out") == as_bytes(expected)


@pytest.mark.parametrize(
    ("separator", "text", "expected"),
    [
        (None, "a\n\nb\n", ["a\n\nb\n"]),
        ("", "a\nb\n\nc\n", ["a\nb\n", "c\n"]),
        ("", "\n\na\n \t\r\n\n\nb", ["a\n", "b"]),
        ("<|endoftext|>", "a\n<|endoftext|>\nb <|endoftext|>\n <|endoftext|> ", ["a\n", "b <|endoftext|>\n"]),
        ("a.b", "x\naxb\na.b\ny", ["x\naxb\n", "y"]),
    ],
)
def test_documents_of_text(tmp_path: Path, separator: str | None, text: str, expected: list[str]) -> None:
    (tmp_path / "in.txt").write_bytes(text.encode())
    prepare([str(tmp_path / "in.txt")], "byte", tmp_path / "out", TextOptions(document_separator=separator))
    assert read_dataset(tmp_path / "out") == as_bytes(expected)


@settings(max_examples=40, deadline=None)
@given(
    pieces=st.lists(st.text(st.sampled_from("ab \n\u00e9\U0001f600"), max_size=60), max_size=25),
    blank=st.booleans(),
    chunk=st.integers(1, 40),
)
def test_where_chunks_end_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str], blank: bool, chunk: int
) -> None:
    folder = tmp_path_factory.mktemp("chunks")
    text = "\n\n".join(pieces)
    (folder / "in.txt").write_bytes(text.encode())
    (folder / "in.jsonl").write_bytes(jsonl(pieces))
    options = TextOptions(document_separator="" if blank else None)
    results = []
    for size in (1 << 20, chunk):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gptbridge.data.sources.CHUNK", size)
            try:
                prepare([str(folder)], "byte", folder / "out", options, overwrite=True)
                results.append(read_dataset(folder / "out"))
            except BadInput as error:
                results.append([[ord(character) for character in error.problem]])
    assert results[0] == results[1]


def test_long_documents_are_encoded_in_pieces(
    tmp_path: Path, texts: list[str], bpe_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = ["\n\n".join(texts[:200]), " ".join(texts[200:400]), "\u4e16 \u754c\n" * 3000]
    (tmp_path / "in.jsonl").write_bytes(jsonl(long))
    prepare([str(tmp_path / "in.jsonl")], str(bpe_folder), tmp_path / "whole")
    monkeypatch.setattr(encoding, "PIECE", 100)
    prepare([str(tmp_path / "in.jsonl")], str(bpe_folder), tmp_path / "pieces")
    assert read_dataset(tmp_path / "pieces") == read_dataset(tmp_path / "whole")


BAD_LINES = {
    b'{"text": ': "not JSON",
    b"<html>": "not JSON",
    b'{"text": "\xff"}': "not JSON",
    b'{"text": "\\ud800"}': "not JSON",
    b'{"text": NaN}': "not JSON",
    b"[" * 100_000: "not JSON",
    b'{"body": "a"}': "no 'text'",
    b'["text"]': "not a JSON object",
    b'"text"': "not a JSON object",
    b"1": "not a JSON object",
    b'{"text": null}': "'text' is not a string",
    b'{"text": ["a"]}': "'text' is not a string",
    b'{"text": 5}': "'text' is not a string",
    b'{"text": {"text": "a"}}': "'text' is not a string",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:24].decode("latin-1"))
def test_a_bad_line_is_refused_by_name_or_counted(tmp_path: Path, line: bytes) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"text": "good"}\n\n' + line + b'\n{"text": "last"}\n')
    (tmp_path / "out").mkdir()
    with pytest.raises(BadInput) as caught:
        prepare([str(source)], "byte", tmp_path / "out" / "data")
    assert str(caught.value).startswith(f"{source}, line 3: {BAD_LINES[line]}")
    assert str(caught.value).isprintable()
    assert not list((tmp_path / "out").iterdir())

    told: list[str] = []
    prepare(
        [str(source)], "byte", tmp_path / "out" / "data", TextOptions(skip_bad=True), on_problem=told.append
    )
    assert read_dataset(tmp_path / "out" / "data") == as_bytes(["good", "last"])
    assert facts(tmp_path / "out" / "data")["bad_documents"] == {BAD_LINES[line]: 1}
    assert len(told) == 1
    assert f"{source}, line 3" in told[0]


def test_text_that_is_not_utf8_is_refused_at_its_line(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_bytes(b"one\n\ntwo\nthr\xe9e\n\nfour\n")
    options = TextOptions(document_separator="")
    with pytest.raises(BadInput, match=r"in\.txt, line 4: not UTF-8: byte 0xe9"):
        prepare([str(tmp_path / "in.txt")], "byte", tmp_path / "out", options)
    prepare(
        [str(tmp_path / "in.txt")],
        "byte",
        tmp_path / "out",
        TextOptions(document_separator="", skip_bad=True),
    )
    assert read_dataset(tmp_path / "out") == as_bytes(["one\n", "four\n"])


@pytest.mark.parametrize("workers", [1, 2])
def test_documents_beyond_the_limits_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    limit = 3 << 20
    monkeypatch.setattr(blocks, "DOCUMENT_LIMIT", limit)
    long = b'{"text": "' + b"x y " * (1 << 20) + b'"}\n'
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "a"}\n' + long + b'{"text": "b"}\n' + long[:-1])
    with pytest.raises(BadInput, match=r"in\.jsonl, line 2: too long"):
        prepare([str(tmp_path / "in.jsonl")], "byte", tmp_path / "out", workers=workers)
    prepare(
        [str(tmp_path / "in.jsonl")], "byte", tmp_path / "out", TextOptions(skip_bad=True), workers=workers
    )
    assert read_dataset(tmp_path / "out") == as_bytes(["a", "b"])
    assert facts(tmp_path / "out")["bad_documents"] == {"too long": 2}

    text = b"a\n\n" + b"x y\n" * (1 << 20) + b"\nb\n"
    (tmp_path / "in.txt").write_bytes(text)
    options = TextOptions(document_separator="", skip_bad=True)
    prepare([str(tmp_path / "in.txt")], "byte", tmp_path / "text", options, workers=workers)
    assert read_dataset(tmp_path / "text") == as_bytes(["a\n", "b\n"])


def test_ids_beyond_16_bits_are_stored_in_32(tmp_path: Path) -> None:
    from gptbridge.data.indexed_files import dtype_for

    # Megatron's own rule
    assert [dtype_for(size) for size in (257, 65499, 65500, 100_000)] == [
        "uint16",
        "uint16",
        "int32",
        "int32",
    ]
    (tmp_path / "in.txt").write_text("abc")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptbridge.data.prepare.dtype_for", lambda size: "int32")
        prepare([str(tmp_path / "in.txt")], "byte", tmp_path / "out")
    assert read_dataset(tmp_path / "out") == as_bytes(["abc"])
