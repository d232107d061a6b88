"""The three backends train the same model; and a spec that differs is noticed."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from dataclasses import replace

import numpy as np
import pytest

from gptbridge.comparing import (
    TOLERANCE,
    Measured,
    compare,
    compare_backends,
    measure_in_worker,
    without_dropout,
)
from gptbridge.errors import RunFailed, UsageError
from gptbridge_specs import RunSpec, load_run
from tests.command import COMMAND

BACKENDS = ("torch", "paddle", "mindspore")
SMALL = (
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.hidden_dropout_prob=0.1",
    "training.seq_length=32",
    "training.max_steps=100",
    "schedule.warmup_steps=10",
)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [word for override in SMALL for word in ("-o", override)]
    start = [*COMMAND, "parity", "gpt2-tiny", *words]
    return subprocess.run([*start, *arguments], capture_output=True, text=True, timeout=280)


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in BACKENDS), reason="needs all three frameworks"
)
def test_three_backends_agree_over_100_steps() -> None:
    result = command("--backends", ",".join(BACKENDS), "--steps", "100", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["steps"] == 100
    assert found["logits_against"] == "NumPy reference"
    assert found["notes"] == ["dropout is set to 0: each framework draws its own"]
    assert [row["backend"] for row in found["rows"]] == list(BACKENDS)
    for row in found["rows"]:
        assert row["logits_difference"] <= TOLERANCE, row
        assert row["loss_difference"] <= TOLERANCE, row
        assert row["grad_norm_difference"] <= TOLERANCE, row
        assert 2 < row["final_loss"] < 4.5, row  # 5.5 before the first step: it learned
        assert row["tokens_per_second"] > 0


@pytest.fixture(scope="module")
def spec() -> RunSpec:
    return without_dropout(load_run("gpt2-tiny", SMALL))


@pytest.fixture(scope="module")
def honest(spec: RunSpec) -> Measured:
    return measure_in_worker(spec, "torch", steps=30)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("model.layernorm_epsilon=1e-4", "torch: initial logits differ from the NumPy reference's by 0.03"),
        ("optimizer.beta2=0.96", "torch: the loss of step"),
    ],
)
def test_another_spec_is_noticed(spec: RunSpec, honest: Measured, override: str, reason: str) -> None:
    other = measure_in_worker(without_dropout(load_run("gpt2-tiny", [*SMALL, override])), "torch", steps=30)
    assert not compare(spec, [honest, honest], tolerance=TOLERANCE).failures
    with pytest.raises(RunFailed, match=reason):
        compare(spec, [honest, other], tolerance=TOLERANCE).require()


def test_the_worst_step_is_named(spec: RunSpec, honest: Measured) -> None:
    losses = list(honest.losses)
    losses[16] *= 1.0003
    losses[20] *= 1.0002
    (line,) = compare(spec, [honest, replace(honest, losses=tuple(losses))], tolerance=TOLERANCE).failures
    assert line == "torch: the loss of step 17 differs from torch's by 0.0003 of its value, more than 0.0001"


@pytest.mark.parametrize("losses", [(float("nan"),) * 30, (1.0,) * 29, ()])
def test_nan_and_lost_steps_are_no_agreement(
    spec: RunSpec, honest: Measured, losses: tuple[float, ...]
) -> None:
    assert compare(spec, [honest, replace(honest, losses=losses)], tolerance=TOLERANCE).failures


def test_logits_that_are_nan_are_no_agreement(spec: RunSpec, honest: Measured) -> None:
    spoilt = honest.logits.copy()
    spoilt[0, 0, 0] = np.nan
    assert compare(spec, [replace(honest, logits=spoilt)], tolerance=TOLERANCE).failures


def test_the_command_prints_a_table_and_fails_beyond_the_tolerance() -> None:
    result = command("--backends", "torch", "--steps", "2", "--tolerance", "1e-12")
    assert result.returncode == 1
    assert result.stdout.splitlines()[1].startswith("torch")
    assert result.stderr.startswith("error: torch: initial logits differ from the NumPy reference's by ")
    assert "Traceback" not in result.stderr


def test_what_cannot_be_is_refused_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="name each backend once"):
        compare_backends(RunSpec(), ["torch", "torch"], steps=1)
    with pytest.raises(UsageError, match=r"parallel: a layout of 2 ranks"):
        compare_backends(RunSpec.model_validate({"parallel": {"tensor": 2}}), ["torch"], steps=1)
