"""MindRecord in MindFormers' two schemas: what is written, MindSpore and gptbridge read alike."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gptbridge.data.dataset import open_dataset
from gptbridge.data.mindrecord_writer import encode_integers, write_mindrecord
from gptbridge.data.prepare import TextOptions
from gptbridge.data.readers.mindrecord import decode_integers
from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.errors import BadInput, RunFailed, UsageError
from gptbridge.finetuning.mindrecord import write_classes, write_text
from gptbridge.finetuning.table import read_table
from gptbridge_cli.data import app
from tests.finetuning.test_tables import spec_of

LINES = ["sentence\tlabel", "good\t1", "rather poor\t0", "fine\t1"]
READER = """
import json, sys
from mindspore.mindrecord import FileReader
print(json.dumps([
    [{name: array.tolist() for name, array in row.items()} for row in FileReader(path).get_next()]
    for path in sys.argv[1:]
]))
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """A folder with `text` and `classes`."""
    (tmp_path / "text.txt").write_text("A text of some length, which is cut.")
    (tmp_path / "train.tsv").write_text("\n".join(LINES))
    write_text([str(tmp_path / "text.txt")], "byte", tmp_path / "text.mindrecord", 9, TextOptions())
    records = {"format": "sst2", "skip_bad": False}
    write_classes(
        tmp_path / "train.tsv", "byte", tmp_path / "classes.mindrecord", 8, records, None, pytest.fail
    )
    return tmp_path


def test_integers_are_packed_as_they_are_read() -> None:
    edges = [0, 127, 128, -128, -129, 32767, 32768, -32769, 2**31 - 1, -(2**31), 5]
    for values in (edges, edges[:4], [7], []):
        packed = np.frombuffer(encode_integers(values), np.uint8)
        assert decode_integers(packed).tolist() == values


@pytest.mark.skipif(find_spec("mindspore") is None, reason="MindSpore reads the files")
def test_mindspore_reads_what_is_written(written: Path) -> None:
    files = [str(written / f"{name}.mindrecord") for name in ("text", "classes")]
    done = subprocess.run(
        [sys.executable, "-c", READER, *files], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text, classes = json.loads(done.stdout.splitlines()[-1])
    content = (written / "text.txt").read_bytes()
    assert [bytes(row["input_ids"]) for row in text] == [content[n : n + 9] for n in range(0, 36, 9)]
    assert all(row["labels"] == row["input_ids"] and row["attention_mask"] == [1] * 9 for row in text)
    assert classes[0] == {
        "input_ids": [*b"good", 256, 256, 256, 256],
        "attention_mask": [1, 1, 1, 1, 0, 0, 0, 0],
        "labels": [1],
    }
    assert bytes(classes[1]["input_ids"]) == b"rather p"
    assert [row["labels"] for row in classes] == [[1], [0], [1]]


def test_what_is_written_is_read_as_text_and_as_classes(written: Path) -> None:
    dataset = open_dataset(str(written / "text.mindrecord"))
    assert bytes(dataset.source.read(0, 36).tolist()) == (written / "text.txt").read_bytes()
    byte, heard = load_tokenizer("byte"), list[str]()
    spec = spec_of("mindrecord")
    table = read_table(written / "classes.mindrecord", spec, byte, heard.append)
    texts = [byte.decode(table.inputs[slice(*table.offsets[n : n + 2])]) for n in range(len(table))]
    assert texts == ["good", "rather p", "fine"]
    assert [int(table.labels[end - 1]) for end in table.offsets[1:]] == [1, 0, 1]
    assert (table.counted == 1).all()


def test_bad_rows_are_named_and_files_are_not_replaced(written: Path) -> None:
    rows = [
        {"input_ids": [5, 6], "attention_mask": [1, 1], "labels": [1]},
        {"input_ids": [5, 6], "attention_mask": [0, 1], "labels": [1]},
        {"input_ids": [5, 6], "attention_mask": [1, 0], "labels": [2]},
        {"input_ids": [5, 999], "attention_mask": [1, 1], "labels": [0]},
    ]
    path, byte, heard = written / "bad.mindrecord", load_tokenizer("byte"), list[str]()
    assert write_mindrecord(path, rows, "") == 4
    with pytest.raises(BadInput, match=r"bad.mindrecord, record 2: its attention_mask"):
        read_table(path, spec_of("mindrecord"), byte, heard.append)
    table = read_table(path, spec_of("mindrecord", skip_bad=True), byte, heard.append)
    assert len(table) == 1
    assert "3 of 4 records are bad" in heard[0]
    with pytest.raises(UsageError, match="exists already"):
        write_mindrecord(path, rows, "")
    with pytest.raises(UsageError, match="exists already"):  # before the text is read, which is not there
        write_text([str(written / "nowhere.txt")], "byte", path, 9, TextOptions())


def test_folders_are_made_and_what_cannot_be_written_is_told(written: Path) -> None:
    rows = [{"input_ids": [5, 6]}]
    assert write_mindrecord(written / "new" / "folder" / "a.mindrecord", rows, "") == 1
    with pytest.raises(RunFailed, match="cannot be written"):
        write_mindrecord(written / "text.txt" / "a.mindrecord", rows, "")


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--records", "sst2"], "--records"),
        (["--length", "9"], "--length"),
        (["--format", "mindrecord", "--overwrite"], "--overwrite"),
        (["--format", "mindrecord", "--num-labels", "3"], "--num-labels"),
        (["--format", "mindrecord", "--records", "sst2", "--json-key", "x"], "--json-key"),
        (["--format", "mindrecord", "--records", "sst2", "--workers", "2"], "--workers"),
        (["--format", "mindrecord", "--records", "sst2", "--document-separator", ""], "--document-separator"),
    ],
)
def test_an_option_that_says_nothing_is_refused(written: Path, words: list[str], option: str) -> None:
    given = [str(written / "text.txt"), "--tokenizer", "byte", "--output", str(written / "no"), *words]
    result = CliRunner().invoke(app, ["prepare", *given])
    assert isinstance(result.exception, UsageError)
    assert result.exception.where == option
    assert not list(written.glob("no*"))


def test_what_was_written_is_told_as_json(written: Path) -> None:
    words = [
        "--tokenizer",
        "byte",
        "--output",
        str(written / "rows"),
        "--format",
        "mindrecord",
        "--length",
        "5",
    ]
    result = CliRunner().invoke(app, ["prepare", str(written / "text.txt"), *words, "--json", "--quiet"])
    told = json.loads(result.stdout)
    assert (told["path"], told["length"]) == (str(written / "rows.mindrecord"), 5)
    assert told["rows"] == (written / "text.txt").stat().st_size // 5 > 0
