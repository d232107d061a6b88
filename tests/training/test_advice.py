"""Advice is given where it helps, and only there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from gptbridge.training.advice import advise
from gptbridge_specs import load_run
from tests.training.conftest import TINY, gptbridge

SPEC = load_run("gpt2-tiny", TINY)  # 8 steps, 257 tokens


@pytest.mark.parametrize("done", [0, 4])
@pytest.mark.parametrize("tokenizer", [250, 257])
def test_a_plain_run_gets_none(done: int, tokenizer: int) -> None:
    assert advise(SPEC, tokenizer_vocab_size=tokenizer, done=done) == []


def test_a_vocabulary_far_above_the_tokenizers_is_told() -> None:
    spec = load_run("gpt2-tiny", [*TINY, "model.vocab_size=50257"])
    (line,) = advise(spec, tokenizer_vocab_size=257, done=0)
    assert "50,000 rows" in line
    assert "-o model.vocab_size=257" in line


def test_a_finished_run_is_told_how_to_go_on() -> None:
    (line,) = advise(SPEC, tokenizer_vocab_size=257, done=8)
    assert "-o training.max_steps=N" in line


@pytest.mark.parametrize(("stop", "told"), [(3, True), (4, True), (5, False)])
def test_a_stop_that_is_over_is_told(stop: int, told: bool) -> None:
    spec = load_run("gpt2-tiny", [*TINY, f"training.stop_after_steps={stop}"])
    lines = advise(spec, tokenizer_vocab_size=257, done=4)
    assert [f"training.stop_after_steps={stop} is over" in line for line in lines] == [True] * told


def test_a_run_prints_its_advice(torch_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(torch_run, tmp_path / "run")
    result = gptbridge("train", "-b", "torch", "--resume", run)
    assert result.returncode == 0, result.stderr
    (line,) = advise(SPEC, tokenizer_vocab_size=257, done=8)
    assert line in result.stdout
