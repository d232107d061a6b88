"""What cannot be measured is one line that names the file, the record or the option."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gptbridge.checkpoint.store import CheckpointStore
from gptbridge_cli.main import main
from tests.checkpoint.conftest import spec_of, writer

Refused = Callable[..., tuple[int, str]]

FILES = {
    "empty.txt": b"",
    "one.txt": b"a",
    "latin.txt": "first\nsecond: caf\xe9".encode("latin-1"),
    "empty.jsonl": b"\n\n",
    "broken.jsonl": b'{"text": "a b"}\n{"text": \n',
    "list.jsonl": b'{"text": "a b"}\n["a b"]\n',
    "missing.jsonl": b'{"text": "a b"}\n{"txt": "a b"}\n',
    "number.jsonl": b'{"text": "a b"}\n{"text": 3}\n',
    "spaced.jsonl": b'\xef\xbb\xbf{"text": "a b"}\n\n{"text": "a b"\n',
    "nothing.jsonl": b'{"text": "  "}\n',
    "surrogate.jsonl": b'{"text": "a \\ud800"}\n',
    "long.jsonl": json.dumps({"text": "b " * 20 + "c" * 12}).encode(),
    "longest.jsonl": json.dumps({"text": "a " + "c" * 40}).encode(),
    "label.jsonl": b'{"context": "a", "choices": ["b", "c"], "label": 2}\n',
    "label_text.jsonl": b'{"context": "a", "choices": ["b", "c"], "label": "b"}\n',
    "label_true.jsonl": b'{"context": "a", "choices": ["b", "c"], "label": true}\n',
    "no_label.jsonl": b'{"context": "a", "choices": ["b", "c"]}\n',
    "choices.jsonl": b'{"context": "a", "choices": ["b", 3], "label": 0}\n',
    "choice.jsonl": b'{"context": "a", "choices": ["b"], "label": 0}\n',
    "no_choice.jsonl": b'{"context": "a", "choices": ["b", " "], "label": 0}\n',
    "src.jsonl": b'{"src_txt": "a"}\n{"tgt_txt": "b"}\n',
    "heads.txt": b" = One = \n text\n = Two = \n",
}
PERPLEXITY, CLOZE, CHOICE = (("--task", task) for task in ("perplexity", "cloze", "multiple-choice"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files above, and a run of 16 positions."""
    folder = tmp_path_factory.mktemp("refused")
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    CheckpointStore(folder / "run" / "checkpoints").save(7, writer(spec_of(), 7))
    return folder


@pytest.fixture
def refused(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """Return a function that measures the run, in this process, and returns exit code and message."""

    def run(*words: str, checkpoint: str = "run") -> tuple[int, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.argv", ["gptbridge", "evaluate", checkpoint, *words])
        with pytest.raises(SystemExit) as end:
            main()
        error = capsys.readouterr().err
        assert len(error.splitlines()) == 1, error
        return int(str(end.value.code)), error

    return run


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        ((*PERPLEXITY, "--data", "nowhere.txt"), 5, "nowhere.txt: No such file"),
        ((*PERPLEXITY, "--data", "run"), 5, "run: not a regular file"),
        ((*PERPLEXITY, "--data", "empty.txt"), 5, "empty.txt: holds 0 tokens: there is nothing to predict"),
        ((*PERPLEXITY, "--data", "one.txt"), 5, "one.txt: holds 1 tokens"),
        ((*PERPLEXITY, "--data", "latin.txt"), 5, "latin.txt: not UTF-8: byte 0xe9 in line 2"),
        ((*PERPLEXITY, "--data", "heads.txt", "--protocol", "mindformers"), 5, "not one block of 16"),
        ((*PERPLEXITY, "--data", "src.jsonl", "--protocol", "modelscope"), 5, "record 2: no field 'src_txt'"),
        ((*PERPLEXITY, "--data", "empty.txt", "--protocol", "modelscope"), 5, "holds no record"),
        ((*CLOZE, "--data", "empty.jsonl"), 5, "empty.jsonl: holds no record"),
        ((*CLOZE, "--data", "broken.jsonl"), 5, "broken.jsonl, record 2: not a JSON object: Expecting"),
        ((*CLOZE, "--data", "list.jsonl"), 5, "list.jsonl, record 2: not a JSON object"),
        ((*CLOZE, "--data", "missing.jsonl"), 5, "missing.jsonl, record 2: no field 'text'"),
        ((*CLOZE, "--data", "number.jsonl"), 5, "number.jsonl, record 2: text is 3 (allowed: a string)"),
        ((*CLOZE, "--data", "spaced.jsonl"), 5, "spaced.jsonl, record 3: not a JSON object"),
        ((*CLOZE, "--data", "nothing.jsonl"), 5, "nothing.jsonl, record 1: text is empty"),
        ((*CLOZE, "--data", "surrogate.jsonl"), 5, "record 1: not a JSON object: it holds a lone surrogate"),
        ((*CLOZE, "--data", "longest.jsonl"), 5, "record 1: 41 tokens to predict (allowed: up to 16"),
        ((*CLOZE, "--data", "long.jsonl", "--protocol", "paddlenlp"), 5, "paddlenlp fails beyond 17"),
        ((*CHOICE, "--data", "label.jsonl"), 5, "record 1: label is 2 (allowed: 0 to 1)"),
        ((*CHOICE, "--data", "label_text.jsonl"), 5, "record 1: label is 'b' (allowed: an integer)"),
        ((*CHOICE, "--data", "label_true.jsonl"), 5, "record 1: label is True (allowed: an integer)"),
        ((*CHOICE, "--data", "no_label.jsonl"), 5, "record 1: no field 'label'"),
        ((*CHOICE, "--data", "choices.jsonl"), 5, "choices is ['b', 3] (allowed: a list of two or more"),
        ((*CHOICE, "--data", "choice.jsonl"), 5, "choices is ['b'] (allowed: a list of two or more"),
        ((*CHOICE, "--data", "no_choice.jsonl"), 5, "record 1: a choice is empty"),
        ((*CHOICE, "--data", "number.jsonl"), 5, "record 1: no field 'context'"),
    ],
)
def test_data_that_do_not_fit(words: tuple[str, ...], code: int, message: str, refused: Refused) -> None:
    assert_refused(refused(*words), code, message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("--task", "perplexty"),
            "--task: no task 'perplexty' (allowed: perplexity, cloze, multiple-choice, classification, "
            "instruction)",
        ),
        (
            (*PERPLEXITY, "--protocol", "megatron"),
            "--protocol: no protocol 'megatron' (allowed: strict, padd",
        ),
        (
            (*CLOZE, "--protocol", "mindformers"),
            "mindformers has no cloze (allowed: strict, paddlenlp, fleetx",
        ),
        ((*CHOICE, "--protocol", "fleetx"), "fleetx has no multiple-choice (allowed: strict)"),
        ((*CLOZE, "--stride", "3"), "--stride: has no place in cloze by strict"),
        ((*CLOZE, "--no-detokenize"), "--detokenize: has no place in cloze by strict"),
        (
            (*PERPLEXITY, "--protocol", "mindformers", "--stride", "3"),
            "--stride: has no place in perplexity by",
        ),
        (
            (*PERPLEXITY, "--protocol", "modelscope", "--detokenize"),
            "--detokenize: has no place in perplexity",
        ),
        (
            (*PERPLEXITY, "--logging-interval", "3"),
            "--logging-interval: has no place in perplexity by strict",
        ),
        ((*PERPLEXITY, "--window", "17"), "--window: 17 is more than the model's 16 positions"),
        ((*PERPLEXITY, "--window", "4", "--stride", "5"), "--stride: 5 is more than the window of 4"),
        ((*PERPLEXITY, "--window", "0"), "--window"),
        (
            (*PERPLEXITY, "-o", "training.seed=3"),
            "-o: training.seed=3 has no place here (allowed: precision,",
        ),
    ],
)
def test_options_that_do_not_fit(words: tuple[str, ...], message: str, refused: Refused) -> None:
    assert_refused(refused("--data", "latin.txt", *words), 2, message)


def test_a_tokenizer_that_does_not_fit(refused: Refused, folder: Path, tmp_path: Path) -> None:
    step = folder / "run" / "checkpoints" / "step-00000007"
    shutil.copytree(step, tmp_path / "other")
    vocabulary = json.loads((step / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"] |= {"Ġa": 257}
    vocabulary["model"]["merges"] = [["Ġ", "a"]]
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(vocabulary))
    another = ("--data", "missing.jsonl", "--tokenizer", str(tmp_path / "other"))
    assert_refused(refused(*PERPLEXITY, *another), 5, "is not the tokenizer that the run was trained with")
    nowhere = ("--data", "missing.jsonl", "--tokenizer", str(tmp_path))
    assert_refused(refused(*PERPLEXITY, *nowhere), 5, "no tokenizer here")


def test_a_token_beyond_the_vocabulary(refused: Refused, folder: Path, tmp_path: Path) -> None:
    """A model that no run made does not say whose tokenizer it has: what it cannot read is named."""
    step = folder / "run" / "checkpoints" / "step-00000007"
    for name in ("config.json", "model.safetensors"):
        shutil.copy(step / name, tmp_path)
    vocabulary = json.loads((step / "tokenizer.json").read_text())
    vocabulary["model"]["vocab"] |= {"Ġb": 257}
    vocabulary["model"]["merges"] = [["Ġ", "b"]]
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    (folder / "good.jsonl").write_text('{"text": "x a"}\n{"text": "a b"}\n')
    found = refused(*CLOZE, "--data", "good.jsonl", checkpoint=str(tmp_path))
    message = "good.jsonl, record 2: the tokenizer's token 257 is beyond the model's vocabulary of 257"
    assert_refused(found, 5, message)


def assert_refused(found: tuple[int, str], code: int, message: str) -> None:
    assert found[0] == code, found
    assert message in found[1]
