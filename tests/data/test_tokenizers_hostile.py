"""Damaged and malicious tokenizer files are refused in one line that names the file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.data.tokenizers.bpe_files import BpeDefinition, byte_symbols, write_bpe
from gptbridge.errors import BadInput

Content = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vocabulary = {token: i for i, token in enumerate([*byte_symbols(), "ab", "abc"])}
    write_bpe(
        BpeDefinition(vocabulary, (("a", "b"), ("ab", "c")), {"<|endoftext|>": 258}, end="<|endoftext|>"),
        tmp_path,
    )
    return tmp_path


def refused(folder: Path) -> str:
    with pytest.raises(BadInput) as caught:
        load_tokenizer(str(folder))
    message = str(caught.value)
    assert caught.value.exit_code == 5
    assert str(folder) in message
    assert message.isprintable()
    assert len(message) < 800
    return message


def vocab(content: Content) -> Any:
    return content["model"]["vocab"]


def put(target: Any, key: Any, value: object) -> None:
    target[key] = value


def split(pattern: str) -> Content:
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [step, plain]}


EDITS: dict[str, tuple[Callable[[Content], object], str]] = {
    "negative id": (lambda c: put(vocab(c), "abc", -1), "the id of 'abc' is -1"),
    "id doubled": (lambda c: put(vocab(c), "abc", 5), "the id 5 appears twice"),
    "id beyond the vocabulary": (lambda c: put(vocab(c), "abc", 1 << 31), "no token has the id 257"),
    "huge id": (lambda c: put(vocab(c), "abc", 10**30), "the id of 'abc' is 1e+30"),
    "id is text": (lambda c: put(vocab(c), "abc", "257"), "the id of 'abc' is 257"),
    "id is true": (lambda c: put(vocab(c), "\u0101", True), "is True"),
    "id is a fraction": (lambda c: put(vocab(c), "abc", 257.0), "is 257.0"),
    "byte missing": (
        lambda c: put(vocab(c), "zz", vocab(c).pop("a")),
        "1 of the 256 byte tokens are missing",
    ),
    "token not byte-level": (lambda c: put(vocab(c), "\u4e16", vocab(c).pop("abc")), "byte-level symbols"),
    "escape codes in a token": (lambda c: put(vocab(c), "\x1b[2J", vocab(c).pop("abc")), r"\x1b[2J"),
    "empty token": (lambda c: put(vocab(c), "", vocab(c).pop("abc")), "byte-level symbols"),
    "vocabulary is a list": (lambda c: put(c["model"], "vocab", ["a"]), "no vocabulary"),
    "no vocabulary": (lambda c: c["model"].pop("vocab"), "no vocabulary"),
    "no model": (lambda c: c.pop("model"), "no model"),
    "merge of an unknown token": (lambda c: c["model"]["merges"].append(["a", "zz"]), "needs 'zz'"),
    "merge into an unknown token": (lambda c: c["model"]["merges"].append(["a", "c"]), "needs 'ac'"),
    "merge of three": (lambda c: c["model"]["merges"].append("a b c"), "is not a pair"),
    "merge of one": (lambda c: c["model"]["merges"].append("a"), "is not a pair"),
    "merge of numbers": (lambda c: c["model"]["merges"].append([1, 2]), "is not a pair"),
    "merge doubled": (lambda c: c["model"]["merges"].append(["a", "b"]), "appears twice"),
    "merges are text": (lambda c: put(c["model"], "merges", "a b"), "merges is not a list"),
    "unknown model": (lambda c: put(c["model"], "type", "Unigram"), "model.type is 'Unigram'"),
    "dropout": (lambda c: put(c["model"], "dropout", 0.1), "model.dropout is '0.1'"),
    "byte fallback": (lambda c: put(c["model"], "byte_fallback", True), "model.byte_fallback"),
    "unknown class": (lambda c: put(c, "pre_tokenizer", {"type": "os.system"}), "pre_tokenizer"),
    "no pre-tokenizer": (lambda c: put(c, "pre_tokenizer", None), "pre_tokenizer"),
    "prefix space": (lambda c: put(c["pre_tokenizer"], "add_prefix_space", True), "pre_tokenizer"),
    "catastrophic regular expression": (
        lambda c: put(c, "pre_tokenizer", split("(a+)+$")),
        "cannot be encoded",
    ),
    "normalizer": (lambda c: put(c, "normalizer", {"type": "Lowercase"}), "normalizer"),
    "added token collides": (lambda c: put(c["added_tokens"][0], "id", 5), "has two ids"),
    "added token is not special": (lambda c: put(c["added_tokens"][0], "special", False), "is not special"),
    "added token doubled": (lambda c: c["added_tokens"].append(c["added_tokens"][0]), "has two ids"),
    "added token without id": (lambda c: c["added_tokens"][0].pop("id"), "without content or id"),
    "added token of half a character": (
        lambda c: put(c["added_tokens"][0], "content", "\ud800"),
        "not JSON",
    ),
    "added tokens are an object": (lambda c: put(c, "added_tokens", {"a": 1}), "not a list"),
}


@pytest.mark.parametrize("name", EDITS)
def test_edited_tokenizer_json_is_refused(folder: Path, name: str) -> None:
    edit, message = EDITS[name]
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    assert load_tokenizer(str(folder)).vocab_size == 259  # before the edit it loads
    edit(content)
    path.write_text(json.dumps(content))
    assert message in refused(folder)


RAW_FILES = {
    "empty": b"",
    "zeros": bytes(4096),
    "not UTF-8": b'{"model": "\xff"}',
    "HTML": b"<!DOCTYPE html><html>404</html>",
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
    "deep": b"[" * 200_000,
    "a list": b"[]",
    "not a number": b'{"model": NaN}',
    "truncated": b'{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0,',
}


@pytest.mark.parametrize("name", RAW_FILES)
@pytest.mark.parametrize("file", ["tokenizer.json", "vocab.json"])
def test_files_that_are_no_tokenizer_are_refused(folder: Path, file: str, name: str) -> None:
    if file == "vocab.json":
        (folder / "tokenizer.json").unlink()
    (folder / file).write_bytes(RAW_FILES[name])
    refused(folder)


def test_a_token_spelt_twice_is_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"abc"', '"ab"'))
    assert "no token has the id 256" in refused(folder)


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        (b"#version: 0.2\na b\nab c d\n", "is not a pair"),
        (b"a b\nab z\n", "needs 'abz'"),
        (b"a b\na b\n", "appears twice"),
        (b"\xff\xfe", "not UTF-8"),
        (bytes(100), "is not a pair"),
    ],
)
def test_bad_merges_are_refused(folder: Path, merges: bytes, message: str) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").write_bytes(merges)
    assert message in refused(folder)


def test_merges_may_lack_the_version_line_and_end_in_carriage_returns(folder: Path) -> None:
    expected = load_tokenizer(str(folder)).identity
    (folder / "tokenizer.json").unlink()
    (folder / "merges.txt").write_bytes(b"a b\r\nab c\r\n\r\n")
    assert load_tokenizer(str(folder)).identity == expected


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["pipe", "endless", "folder", "dangling", "missing"])
def test_what_is_not_a_file_is_refused(folder: Path, kind: str) -> None:
    (folder / "tokenizer.json").unlink()
    path = folder / "merges.txt"
    path.unlink()
    make: dict[str, Callable[[], object]] = {
        "pipe": lambda: os.mkfifo(path),
        "endless": lambda: path.symlink_to("/dev/zero"),
        "folder": path.mkdir,
        "dangling": lambda: path.symlink_to("nowhere"),
        "missing": lambda: None,
    }
    make[kind]()
    refused(folder)


def test_a_folder_without_tokenizer_says_what_is_needed(tmp_path: Path) -> None:
    assert "tokenizer.json" in refused(tmp_path)
    assert "no tokenizer here" in refused(tmp_path / "absent")


def test_half_a_character_beside_the_vocabulary_is_refused(folder: Path) -> None:
    config = folder / "tokenizer_config.json"
    config.write_text('{"bos_token": "\\ud83d\\ude00"}')
    assert load_tokenizer(str(folder)).vocab_size == 260
    config.write_text('{"bos_token": "\\ud83d"}')
    assert "tokenizer_config.json: not readable as JSON" in refused(folder)
