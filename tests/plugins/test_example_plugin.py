"""The example plugin, as a stranger uses it: pip install, list, train, conformance kit."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import CODE
from tests.plugins.installing import EXAMPLES, environment_with

Python = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    """Run Python in a new environment that sees this one's packages and has the example installed."""
    return environment_with(EXAMPLES / "gptbridge-numpy", tmp_path_factory.mktemp("example"))


def test_it_is_listed_beside_the_built_in_backends(python: Python) -> None:
    result = python("-c", CODE, "backends", "--json")
    assert result.returncode == 0, result.stderr
    rows = {row["name"]: row for row in json.loads(result.stdout)}
    assert rows["numpy"]["state"] == "ready"
    assert rows["numpy"]["hardware"] == ["cpu"]
    assert {"torch", "paddle", "mindspore"} < set(rows)


def test_it_trains(python: Python) -> None:
    overrides = {
        "model.hidden_size": 32,
        "model.num_layers": 2,
        "training.seq_length": 32,
        "training.max_steps": 20,
        "evaluation.batches": 1,
    }
    options = [word for key, value in overrides.items() for word in ("-o", f"{key}={value}")]
    result = python("-c", CODE, "train", "--backend", "numpy", "--run", "run", *options)
    assert result.returncode == 0, result.stderr
    folder = Path(str(result.args[0])).parents[2] / "run"
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.5


def test_it_refuses_dropout_by_name(python: Python) -> None:
    result = python(
        "-c", CODE, "train", "--backend", "numpy", "--run", "refused", "-o", "model.hidden_dropout_prob=0.1"
    )
    assert result.returncode == 2
    assert "model.hidden_dropout_prob=0.1: this backend has no dropout" in result.stderr


def test_it_passes_the_conformance_kit(python: Python) -> None:
    result = python("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "source/tests")
    assert result.returncode == 0, result.stdout[-6000:]
    assert " passed" in result.stdout
    skipped = [line for line in result.stdout.splitlines() if line.startswith("SKIPPED")]
    # the rates of both kinds of dropout, and its seeds; adapters, a classifier, and the two together; values;
    # packed records
    assert sum(int(line.partition("[")[2].partition("]")[0]) for line in skipped) == 8
    refused = ("numpy refuses dropout", "numpy refuses task.lora", "task.name")
    assert all(line.endswith(refused) for line in skipped)
