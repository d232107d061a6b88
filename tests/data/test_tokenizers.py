"""Token ids are Hugging Face's, special-token text is text, and what is saved opens elsewhere."""

from __future__ import annotations

import json
import os
import random
import resource
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gptbridge.data.tokenizers import Tokenizer, load_tokenizer
from gptbridge.data.tokenizers.bpe_files import BpeDefinition
from gptbridge.data.tokenizers.byte import ByteTokenizer
from gptbridge.data.tokenizers.training import train_tokenizer
from gptbridge.errors import RunFailed, UsageError

HARD_TEXTS = [
    "",
    " ",
    "\n",
    "Hello, world! It's we'll DON'T they've I'm he'd you're 's's 'S 'LL",
    "  two  spaces   three    \t tabs\t\t\n\n\n  lines \r\n\r\n end  ",
    "<|endoftext|> in a document <|endoftext|><|endoftext|>",
    "nul \x00 bell \x07 escape \x1b[31m delete \x7f c1 \x85 \x9f unit \x1c\x1d\x1e\x1f",
    "no-break\u00a0space thin\u2009space ideographic\u3000space line\u2028sep para\u2029sep zero\u200bwidth",
    "combining e\u0301 \u0061\u0308 \u1e9b\u0323",
    "right-to-left \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002 \u3053\u3093\u306b\u3061\u306f \uc548\ub155",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea",
    "\U00010348 \U0010ffff \ufffd \ufeff",
    "digits 1234567890 \u0661\u0662\u0663 \u00bd \u2167 \u00b2 3.14e-10 0x7f",
    "x" * 5000 + " " * 5000 + "\n" * 5000,
    "ab" * 3000 + "!?" * 3000,
    "def f(x):\n    return x ** 2  # comment\n\n\tif True:\n\t\tpass\n" * 20,
    '{"text": "\\u00e9\\n", "n": [1, 2.5, null]}',
]


@pytest.fixture(scope="module")
def bpe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bpe")
    corpus = folder / "corpus.jsonl"
    texts = [*HARD_TEXTS, *(path.read_text() for path in sorted(Path(json.__file__).parent.glob("*.py")))]
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    train_tokenizer([str(corpus)], 1200, folder / "trained")
    return folder / "trained"


@pytest.fixture(params=["byte", "bpe"])
def folder(request: pytest.FixtureRequest, bpe_folder: Path, tmp_path: Path) -> Path:
    if request.param == "bpe":
        return bpe_folder
    load_tokenizer("byte").save(tmp_path)
    return tmp_path


def reference(folder: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # special-token text is text
    return tokenizer


def assert_same_ids(tokenizer: Tokenizer, expected: tokenizers.Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert ids.tolist() == expected.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids) == text


def test_ids_are_those_of_hugging_face(folder: Path) -> None:
    tokenizer, expected = load_tokenizer(str(folder)), reference(folder)
    assert tokenizer.vocab_size == expected.get_vocab_size()
    for text in HARD_TEXTS:
        assert_same_ids(tokenizer, expected, text)


def test_ids_are_those_of_hugging_face_on_random_text(bpe_folder: Path) -> None:
    tokenizer, expected = load_tokenizer(str(bpe_folder)), reference(bpe_folder)
    draw = random.Random(7)
    alphabet = [
        *"abetion'sTHE 019 \n\t ",
        *" \n  ",
        "\u00e9",
        "\u4e16",
        "\U0001f600",
        "\u00a0",
        "\x00",
        "the ",
        "\r\n",
    ]
    for _ in range(300):
        assert_same_ids(tokenizer, expected, "".join(draw.choices(alphabet, k=draw.randrange(200))))


@given(st.text())
def test_byte_ids_are_the_bytes(text: str) -> None:
    tokenizer = load_tokenizer("byte")
    assert tokenizer.encode(text).tolist() == list(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_end_of_text_is_a_token_that_no_text_has(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.end_of_text == tokenizer.vocab_size - 1
    assert tokenizer.end_of_text not in tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.decode([97, tokenizer.end_of_text]) == "a<|endoftext|>"


def test_byte_vocabulary() -> None:
    tokenizer = load_tokenizer("byte")
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (257, 256)


def test_split_characters_become_replacement_characters(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    byte_ids = np.frombuffer("\u00e9".encode(), np.uint8)
    assert tokenizer.decode(byte_ids[:1]) == "\ufffd"


def test_ids_beyond_the_vocabulary_do_not_decode(folder: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    with pytest.raises(IndexError):
        tokenizer.decode([tokenizer.vocab_size])


def test_transformers_opens_what_is_saved(folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(folder))
    tokenizer.save(tmp_path / "saved")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.eos_token_id == tokenizer.end_of_text
    text = "It's  a test \u00e9\U0001f600\n\n"
    assert theirs(text).input_ids == tokenizer.encode(text).tolist()


def test_identity_is_that_of_the_ids_not_of_the_files(bpe_folder: Path, tmp_path: Path) -> None:
    whole = load_tokenizer(str(bpe_folder))
    for name in ("vocab.json", "merges.txt"):
        (tmp_path / name).write_bytes((bpe_folder / name).read_bytes())
    assert load_tokenizer(str(tmp_path)).identity == whole.identity

    lines = (tmp_path / "merges.txt").read_text().splitlines(keepends=True)
    (tmp_path / "merges.txt").write_text("".join([lines[0], lines[2], lines[1], *lines[3:]]))
    assert load_tokenizer(str(tmp_path)).identity != whole.identity


def test_saved_bytes_load_as_the_built_in_tokenizer(tmp_path: Path) -> None:
    load_tokenizer("byte").save(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert isinstance(loaded, ByteTokenizer)
    assert loaded.identity == load_tokenizer("byte").identity


def test_text_may_be_cut_before_a_space(bpe_folder: Path) -> None:
    tokenizer = load_tokenizer(str(bpe_folder))
    assert tokenizer.cuts_before_space
    text = "\n".join(HARD_TEXTS[3:6] * 3)
    cuts = [i for i in range(1, len(text)) if text[i] in " \n" and "!" <= text[i - 1] <= "~"]
    assert len(cuts) > 30
    for cut in cuts:
        parts = [*tokenizer.encode(text[:cut]), *tokenizer.encode(text[cut:])]
        assert parts == tokenizer.encode(text).tolist()


def test_training_finds_the_merges_of_hugging_face(bpe_folder: Path, tmp_path: Path) -> None:
    texts = [path.read_text() for path in sorted(Path(json.__file__).parent.glob("*.py"))]
    for i, text in enumerate(texts):
        (tmp_path / f"{i}.txt").write_text(text)
    definition = train_tokenizer([str(tmp_path)], 900, tmp_path / "out")
    assert isinstance(definition, BpeDefinition)
    expected = tokenizers.Tokenizer(tokenizers.models.BPE())
    expected.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    expected.train_from_iterator(texts, trainer)
    merges = json.loads(expected.to_str())["model"]["merges"]
    assert [list(pair) for pair in definition.merges] == merges
    assert definition.vocab_size == 900


def test_training_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UsageError, match="257 or more"):
        train_tokenizer([str(tmp_path)], 256, tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match="exists already"):
        train_tokenizer([str(tmp_path)], 300, tmp_path / "out")
    assert not any((tmp_path / "out").iterdir())


def test_training_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text " * 100)
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFailed, match=r"cannot be written: File exists\. .*another --output"):
        train_tokenizer([str(tmp_path / "a.txt")], 300, tmp_path / "file" / "out")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))  # the copy of the text is larger
    try:
        with pytest.raises(RunFailed, match="cannot be written: File too large"):
            train_tokenizer([str(tmp_path / "a.txt")], 300, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "file"]


def test_training_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("text " * 100)
    train_tokenizer([str(tmp_path / "a.txt")], 260, tmp_path / "out")
    os.write(1, b"still there")
    assert capfd.readouterr() == ("still there", "")
