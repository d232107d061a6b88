"""The example dialect, as a stranger uses it: pip install, convert, split, inspect, conformance kit."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.command import CODE
from tests.plugins.installing import EXAMPLES, environment_with
from tests.weights.conversion.checkpoints import (
    MODEL,
    assert_identical,
    random_weights,
    weights_of,
    write_hugging_face,
)

Python = Callable[..., "subprocess.CompletedProcess[str]"]
Gptbridge = Callable[..., str]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Python:
    return environment_with(EXAMPLES / "gptbridge-toy-dialect", tmp_path_factory.mktemp("toy"))


@pytest.fixture
def gptbridge(python: Python) -> Gptbridge:
    def run(*arguments: object) -> str:
        done = python("-c", CODE, *map(str, arguments))
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hugging_face(tmp_path_factory.mktemp("hf") / "source", MODEL, random_weights(MODEL))


def test_it_converts_there_and_back(gptbridge: Gptbridge, source: Path, tmp_path: Path) -> None:
    toy, ranks, back = tmp_path / "toy", tmp_path / "ranks", tmp_path / "back"
    assert "same logits" in gptbridge("convert", source, toy, "--to", "toy")
    assert sorted(path.name for path in toy.iterdir()) == ["toy.safetensors", "toy.yaml", "vocab.json"]
    split = ("--tensor-parallel", 2, "--pipeline-parallel", 2, "--vocab-size", 64)
    assert "toy (plain) -> toy" in gptbridge("convert", toy, ranks, "--to", "toy", *split)
    facts = json.loads(gptbridge("inspect", ranks, "--json"))
    assert (facts["dialect"], facts["variant"], facts["files"]) == ("toy", "plain", 4)
    assert (facts["tensor_parallel"], facts["pipeline_parallel"]) == (2, 2)
    assert facts["model"]["num_attention_heads"] == MODEL.num_attention_heads
    assert "same logits" in gptbridge("convert", ranks, back, "--to", "torch", "--vocab-size", 61)
    assert_identical(weights_of(back), weights_of(source))


def test_its_help_lists_it(gptbridge: Gptbridge) -> None:
    assert "toy" in gptbridge("convert", "--help")


def test_it_passes_the_conformance_kit(python: Python) -> None:
    result = python("-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "source/tests")
    assert result.returncode == 0, result.stdout[-6000:]
    skipped = [line for line in result.stdout.splitlines() if line.startswith("SKIPPED")]
    assert skipped
    assert all("has no place for adapters" in line for line in skipped)
