"""SentencePiece, CPM and ModelScope tokenizers, against the libraries used by hand."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jieba
import pytest
import sentencepiece
import tokenizers

from gptbridge.data.prepare import prepare
from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.data.tokenizers.training import train_tokenizer
from gptbridge.errors import BadInput, UsageError

TEXTS = [
    "\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u6211\u4eec\u53bb\u516c\u56ed\u6563\u6b65\u3002",
    "\u4eba\u5de5\u667a\u80fd \u6b63\u5728\n\u6539\u53d8\u4e16\u754c hello world\u3002\n",
    "<|endoftext|> <eod> </s> \u5f88\u597d",
]


def train_model(path: Path, kind: str, controls: list[str]) -> None:
    model = io.BytesIO()
    words = [" ".join(jieba.cut(text)) for text in TEXTS] * 200
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(words),
        model_writer=model,
        vocab_size=90,
        model_type=kind,
        control_symbols=controls,
        user_defined_symbols=["\u2582", "\u2583"],
        character_coverage=1.0,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())


@pytest.fixture(scope="module")
def cpm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cpm")
    train_model(
        folder / "gpt-cpm-cn.model", "unigram", ["<a>", "<b>", "<c>", "<d>", "<eod>"]
    )  # <eod> is id 7
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "GPTChineseTokenizer"}')
    return folder


@pytest.fixture(scope="module")
def modelscope_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("modelscope")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=150, special_tokens=["<unk>", "<sep>", "<|endoftext|>"], show_progress=False
    )
    tokenizer.train_from_iterator(["\n", " ", *(word for text in TEXTS for word in jieba.cut(text))], trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_sentencepiece_ids_are_the_library_s(tmp_path: Path, kind: str) -> None:
    train_model(tmp_path / "spiece.model", kind, [])
    tokenizer = load_tokenizer(str(tmp_path))
    library = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    assert tokenizer.vocab_size == library.vocab_size()
    assert tokenizer.end_of_text == library.eos_id() == 2
    for text in TEXTS:
        ids = tokenizer.encode(text)
        assert ids.tolist() == library.encode(text)
        assert tokenizer.end_of_text not in ids
        assert tokenizer.decode(ids) == library.decode(library.encode(text))


def test_cpm_cuts_words_and_maps_spaces(cpm_folder: Path) -> None:
    tokenizer = load_tokenizer(str(cpm_folder))
    library = sentencepiece.SentencePieceProcessor(model_file=str(cpm_folder / "gpt-cpm-cn.model"))
    assert tokenizer.end_of_text == 7
    for text in TEXTS[:2]:
        words = [word.replace(" ", "\u2582").replace("\n", "\u2583") for word in jieba.cut(text)]
        ids = tokenizer.encode(text)
        assert ids.tolist() == library.encode(" ".join(words))
        assert tokenizer.decode(ids) == text.replace("\uff0c", ",")  # NFKC, as SentencePiece does by default
    assert library.piece_to_id("\u2582") in tokenizer.encode(TEXTS[1])
    assert library.piece_to_id("\u2583") in tokenizer.encode(TEXTS[1])
    assert 7 not in tokenizer.encode(TEXTS[2])


def test_modelscope_encodes_words(modelscope_folder: Path) -> None:
    tokenizer = load_tokenizer(f"jieba-bpe:{modelscope_folder}")
    library = tokenizers.Tokenizer.from_file(str(modelscope_folder / "tokenizer.json"))
    assert tokenizer.vocab_size == library.get_vocab_size()
    assert tokenizer.end_of_text == library.token_to_id("<|endoftext|>")
    for text in TEXTS:
        ids = tokenizer.encode(text).tolist()
        assert ids == library.encode(list(jieba.cut(text)), is_pretokenized=True).ids
        assert tokenizer.end_of_text not in ids
    assert library.token_to_id("\n") in tokenizer.encode(TEXTS[1])
    ids = tokenizer.encode(TEXTS[0]).tolist()
    separator = library.get_vocab()["<sep>"]
    assert tokenizer.decode([*ids, separator, *ids]) == tokenizer.decode(ids)


@pytest.fixture(params=["sentencepiece", "cpm", "jieba-bpe"])
def any_folder(request: pytest.FixtureRequest, cpm_folder: Path, modelscope_folder: Path) -> str:
    folder = modelscope_folder if request.param == "jieba-bpe" else cpm_folder
    return f"{request.param}:{folder}"


def test_saved_files_load_as_the_same_tokenizer(any_folder: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(any_folder)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert type(loaded) is type(tokenizer)
    assert loaded.identity == tokenizer.identity
    assert loaded.encode(TEXTS[1]).tolist() == tokenizer.encode(TEXTS[1]).tolist()


def test_kinds_on_the_same_files_have_different_identities(cpm_folder: Path) -> None:
    kinds = {load_tokenizer(f"{kind}:{cpm_folder}").identity for kind in ("cpm", "sentencepiece")}
    assert len(kinds) == 2


def test_datasets_are_prepared_by_two_workers(cpm_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    for workers in (1, 2):
        prepare([str(tmp_path / "in.jsonl")], str(cpm_folder), tmp_path / f"out{workers}", workers=workers)
    first, second = ((tmp_path / f"out{workers}.bin").read_bytes() for workers in (1, 2))
    assert first == second
    tokenizer = load_tokenizer(str(tmp_path / "out1.tokenizer"))
    assert len(first) == 2 * sum(len(tokenizer.encode(text)) for text in TEXTS)


@pytest.mark.parametrize("kind", ["jieba-bpe", "cpm"])
def test_a_trained_vocabulary_keeps_the_text(tmp_path: Path, kind: str) -> None:
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:2] * 50))
    trained = train_tokenizer([str(tmp_path / "in.jsonl")], 90, tmp_path / "made", kind=kind)
    tokenizer = load_tokenizer(str(tmp_path / "made"))
    assert tokenizer.identity == trained.identity == load_tokenizer(f"{kind}:{tmp_path / 'made'}").identity
    assert tokenizer.vocab_size == trained.vocab_size <= 90
    assert tokenizer.end_of_text is not None
    for text in TEXTS[:2]:
        ids = tokenizer.encode(text)
        kept = text if kind == "jieba-bpe" else text.replace("\uff0c", ",")
        assert tokenizer.decode(ids) == kept
        assert len(set(ids.tolist())) > 5
        assert tokenizer.end_of_text not in ids
    with pytest.raises(UsageError, match="--vocab-size"):
        train_tokenizer([str(tmp_path / "in.jsonl")], 7, tmp_path / "small", kind=kind)
    assert not (tmp_path / "small").exists()


@pytest.mark.parametrize("data", [b"", bytes(100), b"<html>", b"\xff" * 50, b"half"])
def test_damaged_models_are_refused(cpm_folder: Path, tmp_path: Path, data: bytes) -> None:
    whole = (cpm_folder / "gpt-cpm-cn.model").read_bytes()
    (tmp_path / "a.model").write_bytes(whole[: len(whole) // 2] if data == b"half" else data)
    with pytest.raises(BadInput, match=r"a\.model: not a SentencePiece model"):
        load_tokenizer(str(tmp_path))


def test_a_model_that_is_not_cpm_s_is_refused(tmp_path: Path) -> None:
    train_model(tmp_path / "a.model", "unigram", [])
    with pytest.raises(BadInput, match="no <eod>"):
        load_tokenizer(f"cpm:{tmp_path}")


EDITS: dict[str, dict[str, Any]] = {
    "a regular expression": {
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": "(a+)+$"},
            "behavior": "Isolated",
            "invert": False,
        }
    },
    "not a tokenizer": {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
    "'\\n' is not in": {"model": {"type": "BPE", "vocab": {"<unk>": 0}, "merges": []}, "added_tokens": []},
}


@pytest.mark.parametrize("message", EDITS)
def test_damaged_modelscope_tokenizers_are_refused(
    modelscope_folder: Path, tmp_path: Path, message: str
) -> None:
    content = json.loads((modelscope_folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(content | EDITS[message]))
    with pytest.raises(BadInput) as caught:
        load_tokenizer(f"jieba-bpe:{tmp_path}")
    assert message in str(caught.value)


def test_a_missing_library_is_named_with_the_command_that_installs_it(
    cpm_folder: Path, tmp_path: Path
) -> None:
    source = tmp_path / "in.txt"
    source.write_text("text")
    script = """
import sys
sys.modules["sentencepiece"] = None
sys.argv = ["gptbridge", "data", "prepare", sys.argv[2], "--tokenizer", sys.argv[1], "--output", "out"]
from gptbridge_cli.main import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", script, f"sentencepiece:{cpm_folder}", str(source)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "pip install -e '.[zh]'" in done.stderr
    assert "Traceback" not in done.stderr
