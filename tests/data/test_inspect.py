from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gptbridge import api
from gptbridge.data.dataset import is_dataset
from gptbridge.data.inspection import inspect_dataset
from gptbridge.data.prepare import TextOptions, prepare
from gptbridge.errors import BadInput
from tests.data.token_files import write_megatron, write_paddlenlp


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).with_name("gptbridge"), "data", "inspect", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_fact_is_what_was_written(tmp_path: Path) -> None:
    write_megatron(tmp_path / "set", [[5] * length for length in range(20)], "int32")
    facts = inspect_dataset(str(tmp_path / "set")).as_dict()
    digest = facts.pop("digest")
    assert len(digest) == 64
    assert facts == {
        "path": str(tmp_path / "set"),
        "format": "megatron",
        "documents": 20,
        "tokens": 190,
        "dtype": "int32",
        "document_tokens": {"min": 0, "median": 9.5, "mean": 9.5, "max": 19, "empty": 1},
        "largest_token": 5,
        "vocab_size": None,
        "tokenizer": None,
        "splits": {
            "training": {"documents": 19, "tokens": 171},
            "validation": {"documents": 1, "tokens": 19},
            "test": {"documents": 0, "tokens": 0},
        },
    }


def test_the_command_prints_json_and_lines(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("some text")
    prepare([str(tmp_path / "text.txt")], "byte", tmp_path / "set", TextOptions(append_end_of_text=True))
    done = command(str(tmp_path / "set"), "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == inspect_dataset(str(tmp_path / "set")).as_dict()
    assert json.loads(done.stdout)["largest_token"] == 256
    lines = command(str(tmp_path / "set")).stdout.splitlines()
    assert {"documents: 1", "tokens: 10", "vocab size: 257", "format: megatron"} <= set(lines)


def test_the_embedded_corpus_can_be_looked_at() -> None:
    facts = json.loads(command("--json").stdout)
    assert (facts["format"], facts["path"]) == ("embedded", "the embedded corpus")
    assert facts["largest_token"] == 256


@pytest.mark.parametrize(
    ("file", "path"),
    [
        ("x.idx", "x"),
        ("x.idx", "x.bin"),
        ("x_ids.npy", "x_idx.npz"),
        ("x_ids.npz", "x"),
        ("x.mindrecord", "x.mindrecord.db"),
        ("x.mindrecord0", "x"),
        ("x.mindrecord0", "x.mindrecord"),
        ("x.mindrecord0", "x.mindrecord0"),
        ("train.bin", "train.bin"),
        ("train.bin", "train"),
    ],
)
def test_a_dataset_is_known_by_every_name_that_opens_it(tmp_path: Path, file: str, path: str) -> None:
    (tmp_path / file).write_bytes(np.arange(1, 50, dtype="<u2").tobytes())
    assert is_dataset(tmp_path / path)
    assert is_dataset(tmp_path)
    assert not is_dataset(tmp_path / "other")


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"\x80\x02\x8a\x0a", b"version https://"])
def test_weights_in_a_bin_are_no_dataset(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(start + bytes(60))
    assert not is_dataset(tmp_path / "pytorch_model.bin")
    assert not is_dataset(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert not is_dataset(tmp_path)


@pytest.mark.parametrize("content", [bytes(4096), b"\x07garbage" * 500, b"text\n" * 999])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "pytorch_model-00001-of-00002.bin"])
def test_damaged_weights_are_said_to_be_damaged_weights(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=r"\.bin") as refused:
        api.inspect(tmp_path / name)
    assert "token" not in str(refused.value)


def test_a_damaged_dataset_is_one_line_and_exit_code_5(tmp_path: Path) -> None:
    write_paddlenlp(tmp_path / "set", [[1, 2], [3]])
    (tmp_path / "set_idx.npz").write_bytes(b"\x1b[2J garbage")
    done = command(str(tmp_path / "set"))
    assert done.returncode == 5
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "set_idx.npz" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_dataset_is_exit_code_5(tmp_path: Path) -> None:
    done = command(str(tmp_path / "nowhere"))
    assert done.returncode == 5
    assert "no such token dataset" in done.stderr


@pytest.mark.parametrize("position", [0, 4_500_000])
def test_a_bad_token_is_found_wherever_it_lies(tmp_path: Path, position: int) -> None:
    ids = np.zeros(5_000_000, np.int32)
    ids[position] = -1
    np.save(tmp_path / "set_ids.npy", ids)
    np.savez(tmp_path / "set_idx.npz", lens=np.full(5, 1_000_000, np.int32))
    done = command(str(tmp_path / "set"))
    assert done.returncode == 5
    assert f"token -1 in document {position // 1_000_000}" in done.stderr
