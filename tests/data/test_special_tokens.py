"""Special tokens get the ids that transformers' AutoTokenizer gives them, and the same one ends a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from gptbridge.data.prepare import TextOptions, prepare
from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.data.tokenizers.bpe_files import GPT2_SPLIT, byte_symbols
from gptbridge.errors import BadInput, UsageError
from tests.data.prepared import read_dataset

MERGES = (("t", "h"), ("th", "e"))
PLAIN = {token: i for i, token in enumerate([*byte_symbols(), *("".join(pair) for pair in MERGES)])}
NEXT = len(PLAIN)
END, OWN = "<|endoftext|>", "<|im_end|>"
GPT2 = {"tokenizer_class": "GPT2Tokenizer"}
FAST = {"tokenizer_class": "PreTrainedTokenizerFast"}

Files = dict[str, Any]


def token(content: str, special: bool = True) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"content": content, "special": special, **plain}


def two_files(vocabulary: dict[str, int], settings: Files | None = GPT2, **others: Files) -> Files:
    content = {"vocab": PLAIN | vocabulary, "tokenizer_config": settings, **others}
    return {name: value for name, value in content.items() if value is not None}


def one_file(special: dict[str, int], settings: Files | None = FAST, **others: Files) -> Files:
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "normalizer": None,
        "post_processor": None,
        "pre_tokenizer": GPT2_SPLIT,
        "decoder": GPT2_SPLIT,
        "added_tokens": [{"id": i, **token(name)} for name, i in special.items()],
        "model": {"type": "BPE", "vocab": PLAIN | special, "merges": [list(pair) for pair in MERGES]},
    }
    files = {"tokenizer": content, "tokenizer_config": settings, **others}
    return {name: value for name, value in files.items() if value is not None}


def write(folder: Path, files: Files) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    merges = "".join(f"{left} {right}\n" for left, right in MERGES)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}")
    return folder


BOTH = {END: NEXT, OWN: NEXT + 1}
KNOWN_BY_BOTH = {
    "plain": two_files({END: NEXT}),
    "end not in the vocabulary": two_files({}),
    "own end": two_files(BOTH, GPT2 | {"eos_token": OWN}),
    "fast class": two_files(BOTH, {"tokenizer_class": "GPT2TokenizerFast", "eos_token": OWN}),
    "own end without an id": two_files({END: NEXT}, GPT2 | {"eos_token": OWN}),
    "own end as an object": two_files(BOTH, GPT2 | {"eos_token": {"__type": "AddedToken", **token(OWN)}}),
    "no end": two_files({END: NEXT}, GPT2 | {"eos_token": None}),
    "a byte ends": two_files({END: NEXT}, GPT2 | {"eos_token": "!"}),
    "added": two_files({END: NEXT}, added_tokens={OWN: NEXT + 1}),
    "added, which ends": two_files({END: NEXT}, GPT2 | {"eos_token": OWN}, added_tokens={OWN: NEXT + 1}),
    "added before the end": two_files({}, added_tokens={OWN: NEXT}),
    "added out of order": two_files({END: NEXT}, added_tokens={"<y>": NEXT + 2, "<x>": NEXT + 1}),
    "added with a gap": two_files({END: NEXT}, added_tokens={OWN: NEXT + 5}),
    "added and padding": two_files({END: NEXT}, GPT2 | {"pad_token": "<p>"}, added_tokens={OWN: NEXT + 1}),
    "map": two_files(BOTH, special_tokens_map={"eos_token": OWN}),
    "map wins": two_files(BOTH, GPT2 | {"eos_token": END}, special_tokens_map={"eos_token": OWN}),
    "map adds": two_files({END: NEXT}, special_tokens_map={"additional_special_tokens": ["<a>"]}),
    "decoder": two_files(
        {END: NEXT}, GPT2 | {"eos_token": OWN, "added_tokens_decoder": {str(NEXT + 1): token(OWN)}}
    ),
    "decoder wins": two_files(
        {END: NEXT},
        GPT2 | {"added_tokens_decoder": {str(NEXT + 1): token(OWN)}},
        added_tokens={"<x>": NEXT + 1},
    ),
    "all names": two_files(
        {},
        GPT2
        | {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "eos", "bos", "mask", "cls", "image")},
    ),
    "more": two_files({END: NEXT}, GPT2 | {"additional_special_tokens": ["<a>", "<b>"], "pad_token": "<p>"}),
    "known by config.json": two_files({END: NEXT}, {"eos_token": OWN}, config={"model_type": "gpt2"}),
    "one file": one_file(BOTH, FAST | {"eos_token": OWN}),
    "one file, a new end": one_file({END: NEXT}, FAST | {"eos_token": OWN}),
    "one file, GPT-2's class": one_file({}, GPT2),
    "one file and added": one_file({END: NEXT}, FAST | {"eos_token": END}, added_tokens={OWN: NEXT + 1}),
    "one file and a map": one_file(BOTH, special_tokens_map={"eos_token": OWN}),
    "one file, more": one_file(
        {END: NEXT}, FAST | {"eos_token": END, "extra_special_tokens": {"x_token": "<a>"}, "pad_token": "<p>"}
    ),
}


@pytest.mark.parametrize("files", KNOWN_BY_BOTH.values(), ids=KNOWN_BY_BOTH)
def test_length_end_and_ids_are_those_of_transformers(tmp_path: Path, files: Files) -> None:
    folder = write(tmp_path / "tokenizer", files)
    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(str(folder))
    assert ours.vocab_size == len(theirs)
    assert ours.end_of_text == theirs.eos_token_id
    assert ours.encode("the other text").tolist() == theirs("the other text")["input_ids"]
    for name, i in theirs.get_added_vocab().items():
        assert ours.decode([i]) == name
    ours.save(tmp_path / "saved")
    again = load_tokenizer(str(tmp_path / "saved"))
    assert (again.identity, again.end_of_text) == (ours.identity, ours.end_of_text)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").eos_token_id == ours.end_of_text


def test_the_end_is_part_of_the_identity(tmp_path: Path) -> None:
    names = (END, OWN, None)
    folders = [
        write(tmp_path / str(i), two_files(BOTH, GPT2 | {"eos_token": name})) for i, name in enumerate(names)
    ]
    assert len({load_tokenizer(str(folder)).identity for folder in folders}) == 3


def test_without_any_word_the_usual_name_ends_a_text(tmp_path: Path) -> None:
    bare = load_tokenizer(str(write(tmp_path / "bare", two_files({END: NEXT}, None))))
    assert bare.end_of_text == NEXT
    told = load_tokenizer(str(write(tmp_path / "told", two_files({END: NEXT}))))
    assert told.identity == bare.identity


def test_append_eos_puts_the_own_end(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the")
    for name, end in (("own", OWN), ("none", None)):
        folder = str(write(tmp_path / name, two_files(BOTH, GPT2 | {"eos_token": end})))
        options = TextOptions(append_end_of_text=True)
        if end:
            prepare([str(tmp_path / "a.txt")], folder, tmp_path / f"{name}-data", options)
            assert read_dataset(tmp_path / f"{name}-data") == [[PLAIN["the"], NEXT + 1]]
        else:
            with pytest.raises(UsageError, match="no end-of-text token"):
                prepare([str(tmp_path / "a.txt")], folder, tmp_path / "x", options)


@pytest.mark.parametrize("names", [("encoder.json", "vocab.bpe"), ("gpt2-vocab.json", "gpt2-merges.txt")])
def test_other_names_of_the_two_files(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = write(tmp_path / "usual", two_files({END: NEXT}, None))
    other = tmp_path / "other"
    other.mkdir()
    for name, usual in zip(names, ("vocab.json", "merges.txt"), strict=True):
        (other / name).write_bytes((folder / usual).read_bytes())
    assert load_tokenizer(str(other)).identity == load_tokenizer(str(folder)).identity


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("added_tokens", {OWN: "1"}, "without content or id"),
        ("added_tokens", {OWN: True}, "without content or id"),
        ("added_tokens", {"": NEXT + 1}, "without content or id"),
        ("tokenizer_config", {"added_tokens_decoder": [1]}, "without content or id"),
        ("tokenizer_config", {"added_tokens_decoder": {"x": token(OWN)}}, "without content or id"),
        ("tokenizer_config", {"added_tokens_decoder": {"9" * 5000: token(OWN)}}, "without content or id"),
        ("tokenizer_config", {"added_tokens_decoder": {"300": token(OWN, special=False)}}, "not special"),
        ("tokenizer_config", [], "not a JSON object"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, name: str, content: Any, said: str) -> None:
    folder = write(tmp_path / "tokenizer", {**two_files({END: NEXT}), name: content})
    with pytest.raises(BadInput, match=rf"{name}\.json: .*{said}"):
        load_tokenizer(str(folder))
