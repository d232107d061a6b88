"""What a run leaves behind, and how it ends: real runs on torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from gptbridge.rules.schedule import learning_rate
from gptbridge.training.events import read_events
from gptbridge.weights.initial import InitialWeights
from gptbridge_specs import load_run
from tests.checkpoint.conftest import opened_run
from tests.training.conftest import (
    NO_DROPOUT,
    TINY,
    gptbridge,
    kinds_of,
    numbers_of,
    options,
    run_jobs,
    steps_of,
)
from tests.weights.conversion.test_vectors import VECTORS


def test_a_run_folder_is_complete(torch_run: Path) -> None:
    spec = load_run(str(torch_run / "spec.yaml"))
    assert spec == load_run("gpt2-tiny", [*TINY, "checkpoint.interval=4"])
    environment = json.loads((torch_run / "environment.json").read_text())
    assert environment["backend"] == "torch"
    assert environment["framework_version"]
    assert sorted(p.name for p in (torch_run / "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]


def test_every_event_has_its_fields(torch_run: Path) -> None:
    kinds = kinds_of(torch_run)
    steps = [*["step"] * 4, "evaluate"] * 2
    assert [kind for kind in kinds if kind != "checkpoint"] == ["start", *steps, "end"]
    # A checkpoint is written beside the steps after it; the last one is waited for.
    assert kinds.index("checkpoint") > kinds.index("evaluate")
    assert kinds[-2:] == ["checkpoint", "end"]
    spec = load_run(str(torch_run / "spec.yaml"))
    for step, event in steps_of(torch_run).items():
        assert event["learning_rate"] == learning_rate(spec.schedule, 8, step)
        assert event["tokens"] == step * spec.tokens_per_step
        assert 0 <= event["data_seconds"] <= event["step_seconds"]
        assert event["tokens_per_second"] > 0
        assert 4 < event["loss"] < 7
    assert {e["reason"] for e in read_events(torch_run / "events.jsonl") if e["event"] == "end"} == {
        "complete"
    }


def test_the_checkpoint_knows_where_the_run_is(torch_run: Path) -> None:
    with opened_run(torch_run / "checkpoints/step-00000004") as checkpoint:
        state = checkpoint.state
    assert (state.step, state.tokens, state.data.samples) == (4, 4 * 128, 16)
    assert (state.rng.seed, state.rng.step, state.optimizer.updates) == (1234, 4, 4)


def test_a_run_is_not_overwritten(torch_run: Path) -> None:
    before = (torch_run / "events.jsonl").read_bytes()
    result = gptbridge("train", "--backend", "torch", "--run", torch_run, *options(TINY))
    assert result.returncode == 2
    assert "--resume auto" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert (torch_run / "events.jsonl").read_bytes() == before


def test_a_branch_of_a_run_stands_on_its_own(torch_run: Path, tmp_path: Path) -> None:
    """Continue from an older checkpoint: refused in the same folder, a whole run in a new one."""
    run = shutil.copytree(torch_run, tmp_path / "run")
    older = run / "checkpoints/step-00000004"
    refused = gptbridge("train", "--backend", "torch", "--resume", older)
    assert refused.returncode == 2
    assert "--run" in refused.stderr
    branch = tmp_path / "branch"
    overrides = ["training.max_steps=6", "schedule.decay_steps=8"]
    run_jobs(tmp_path, "torch", [{"run": str(branch), "resume": str(older), "overrides": overrides}])
    shutil.rmtree(run)
    whole = numbers_of(torch_run)
    assert numbers_of(branch) == {step: whole[step] for step in (5, 6)}
    assert kinds_of(branch)[:2] == ["checkpoint", "resume"]
    with opened_run(branch / "checkpoints/step-00000004") as checkpoint:
        assert checkpoint.state.step == 4


def test_a_run_from_before_goes_on(tmp_path: Path) -> None:
    """Of a run whose software still had q, k and v in one weight, and which kept no spec.yaml."""
    before = VECTORS / "run"
    done = gptbridge(
        "train", "-b", "torch", "--resume", before, "--run", tmp_path / "on", "-o", "training.max_steps=5"
    )
    assert done.returncode == 0, done.stderr
    assert list(steps_of(tmp_path / "on")) == [4, 5]
    with opened_run(before) as old, opened_run(tmp_path / "on" / "checkpoints" / "step-00000003") as copy:
        for name, array in old.weights.arrays.items():
            np.testing.assert_array_equal(copy.weights.arrays[name], array)
    spoilt = shutil.copytree(before, tmp_path / "spoilt")
    weights = spoilt / "checkpoints" / "step-00000003" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    refused = gptbridge("train", "-b", "torch", "--resume", spoilt, "--run", tmp_path / "never")
    assert refused.returncode == 5
    assert "every checkpoint is damaged" in refused.stderr


def test_a_forbidden_change_is_refused_before_anything_happens(torch_run: Path) -> None:
    before = (torch_run / "events.jsonl").read_bytes()
    result = gptbridge(
        "train", "-b", "torch", "--resume", torch_run, "-o", "training.seed=9", "-o", "model.num_layers=3"
    )
    assert result.returncode == 2
    assert "training.seed: 9, the checkpoint has 1234" in result.stderr
    assert "model.num_layers: 3, the checkpoint has 2" in result.stderr
    assert (torch_run / "events.jsonl").read_bytes() == before


def test_a_batch_without_a_token_that_counts_is_skipped(torch_runs: Path) -> None:
    run = torch_runs / "masked"
    for event in steps_of(run).values():
        assert (event["loss"], event["grad_norm"], event["skipped"]) == (None, None, True)
    assert kinds_of(run).count("warning") == 2
    with opened_run(run / "checkpoints/step-00000002") as saved:
        assert (saved.state.step, saved.state.optimizer.updates) == (2, 0)
        start = InitialWeights(saved.weights.model, 1234)
        for name, array in saved.weights.arrays.items():
            np.testing.assert_array_equal(array, start[name])


def test_a_loss_that_is_no_number_ends_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    wild = ("schedule.max_lr=1e30", "schedule.warmup_steps=6", "optimizer.clip_grad_norm=null")
    result = gptbridge(
        "train", "-b", "torch", "--run", run, *options([*TINY, *wild, "checkpoint.interval=1"])
    )
    assert result.returncode == 1
    assert "the loss is" in result.stderr
    assert "The last checkpoint is step" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    end = read_events(run / "events.jsonl")[-1]
    assert (end["event"], end["reason"]) == ("end", "failed")
    newest = max((run / "checkpoints").iterdir())
    with opened_run(newest):
        pass


def test_a_validation_loss_that_is_no_number_is_null_and_told(tmp_path: Path) -> None:
    run = tmp_path / "run"
    wild = (
        "schedule.name=constant",
        "schedule.warmup_steps=0",
        "schedule.max_lr=1e38",
        "evaluation.interval=1",
    )
    result = gptbridge("train", "-b", "torch", "--run", run, *options([*TINY, *wild]))
    assert result.returncode == 1
    assert [line for line in result.stdout.splitlines() if "validation loss" in line] == [
        "warning: step 1: the validation loss is nan"
    ]
    assert "step 2: the loss is nan" in result.stderr
    first = next(e for e in read_events(run / "events.jsonl") if e["event"] == "evaluate")
    assert (first["step"], first["loss"], first["perplexity"]) == (1, None, None)


def test_a_loss_that_overflows_in_fp16_is_a_step_that_is_skipped(tmp_path: Path) -> None:
    run = tmp_path / "run"
    grows = (
        "schedule.name=constant", "schedule.warmup_steps=0", "schedule.max_lr=10", "precision.compute=fp16",
        "optimizer.clip_grad_norm=null", "training.max_steps=40", "evaluation.interval=0",
    )  # fmt: skip
    run_jobs(tmp_path, "torch", [{"run": str(run), "overrides": [*TINY, *NO_DROPOUT, *grows]}])
    steps = steps_of(run)
    skipped = [step for step, event in steps.items() if event.get("skipped")]
    assert any(steps[step]["loss"] is None for step in skipped)
    assert all(event["loss"] is not None for step, event in steps.items() if step not in skipped)
    assert len(skipped) < len(steps) == 40
