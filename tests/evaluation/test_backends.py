"""The backends agree, in whatever dialect the checkpoint is, and none makes logits of a whole batch."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptbridge import convert
from tests.evaluation.conftest import ours
from tests.training.conftest import ENVIRONMENT

DIALECTS: dict[str, Any] = {
    "paddle": {"to": "paddle"},
    "mindspore": {"to": "megatron", "pipeline_parallel": 2},
}

# Scores rows with a head of 60,000 words and prints by how many MB the peak of memory grows meanwhile.
MEMORY = """
import json, sys
import numpy as np
from gptbridge.plugins.backend import load_backend
from gptbridge_specs import RunSpec

def peak():  # not ru_maxrss, which starts at what the forking parent held
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))) / 1024

backend, rows, length = sys.argv[1], 8, 256
model = {"vocab_size": 60000, "hidden_size": 16, "num_layers": 1, "num_attention_heads": 2,
         "max_position_embeddings": length}
spec = RunSpec.model_validate({"model": model, "training": {"seq_length": length, "global_batch_size": rows}})
session = load_backend(backend).open_model(spec)
for shard in session.shards():
    shard.write(np.full(shard.shape, 0.01, np.float32))
tokens = np.zeros((rows, length), np.int32)
at = np.tile(np.arange(2, dtype=np.int32), (rows, 1))
session.token_losses(tokens[:, :], at, at)
before = peak()
session.token_losses(tokens, tokens)
print(json.dumps(peak() - before))
"""


def jobs(texts: Path) -> list[dict[str, Any]]:
    return [
        {"task": "perplexity", "data": texts / "wiki.txt", "window": 20, "stride": 7},
        {"task": "perplexity", "data": texts / "wiki.txt", "protocol": "fleetx-develop", "batch_size": 3},
        {"task": "cloze", "data": texts / "lambada.jsonl"},
        {"task": "multiple-choice", "data": texts / "choices.jsonl"},
    ]


@pytest.mark.parametrize("backend", ["paddle", "mindspore"])
def test_it_agrees_with_torch(backend: str, model: Path, texts: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    convert(model, tmp_path / "other", **DIALECTS[backend])
    for expected, found in zip(
        ours(model, jobs(texts)), ours(tmp_path / "other", jobs(texts), backend), strict=True
    ):
        assert found["measures"] == pytest.approx(expected["measures"], rel=1e-4)
        assert found["counts"] == expected["counts"]
        assert found["tokenizer"] == expected["tokenizer"]


def test_another_model_is_another_number(model: Path, texts: Path) -> None:
    """A control: numbers would differ if the weights did, here those of attention."""
    (known,) = ours(model, jobs(texts)[:1])
    (shorter,) = ours(model, [{**jobs(texts)[0], "window": 19}])
    assert known["measures"] != pytest.approx(shorter["measures"], rel=1e-4)


@pytest.mark.parametrize("backend", ["torch", "paddle", "mindspore"])
def test_no_tensor_of_all_logits_is_made(backend: str) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    command = [sys.executable, "-c", MEMORY, backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr[-2000:]
    whole = 8 * 256 * 60000 * 4 / 2**20
    assert json.loads(done.stdout.splitlines()[-1]) < 0.6 * whole
