"""Configurations of ModelScope, in the words of its own files, become specs that lose nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gptbridge_specs.imports import Facts, import_file, modelscope
from gptbridge_specs.imports.reading import Reading
from tests.specs.imports.reading import Files, differing, refusal
from tests.specs.imports.texts import (
    GPT3,
    MODELSCOPE,
)


@pytest.mark.parametrize(
    ("preset", "pairs", "warmup"),
    [
        ("modelscope-gpt3-1.3b-poetry", [("preprocessor.sequence_length", 128)], 100),
        ("modelscope-gpt3-1.3b-dureader",
         [("train.optimizer.lr", 1e-4), ("preprocessor.sequence_length", 512),
          ("train.dataloader.batch_size_per_gpu", 4)], 200),
    ],
)  # fmt: skip
def test_modelscope_s_recipes_are_the_presets(
    files: Files, preset: str, pairs: list[Any], warmup: int
) -> None:
    files.modelscope(*pairs, model=GPT3)
    overrides = ["schedule.name=noam", f"schedule.warmup_steps={warmup}"]
    imported = import_file(files.folder / "configuration.json", overrides)
    # a line end after the question is its guide's own, and in no configuration
    assert differing(imported, preset) - {"task.records.source"} == {
        "training.epochs", "training.max_steps", "checkpoint.interval", "evaluation.interval"
    }  # fmt: skip


def test_modelscope_s_classes_read_different_keys(files: Files) -> None:
    model = {
        **GPT3,
        "hidden_dropout": 0.2,
        "hidden_dropout_prob": 0.3,
        "init_method_std": 0.01,
        "ffn_hidden_size": 64,
    }
    large = files.modelscope(model=model).spec.model
    assert (large.hidden_dropout_prob, large.initializer_range, large.ffn_size) == (0.2, 0.01, 64)
    assert large.activation == "gelu_tanh"
    base = files.modelscope(("megatron", None), model=model).spec.model
    assert (base.hidden_dropout_prob, base.initializer_range, base.ffn_size) == (0.3, 0.02, 8192)
    assert base.activation == "gelu_erf"
    exact = files.modelscope(model={**model, "bias_gelu_fusion": False}).spec.model
    assert exact.activation == "gelu_erf"


def test_modelscope_layouts_lengths_and_hooks(files: Files) -> None:
    hooks = [
        {"type": "CheckpointHook", "interval": 2},
        {"type": "EvaluationHook", "interval": 5, "by_epoch": False},
    ]
    spec = files.modelscope(
        ("megatron", {"world_size": 8, "tensor_model_parallel_size": 2}),
        ("train.hooks", hooks),
        model=GPT3,
        samples=640,
    ).spec
    assert (spec.parallel.data, spec.parallel.tensor, spec.training.global_batch_size) == (4, 2, 64)
    assert (spec.checkpoint.interval, spec.evaluation.interval) == (20, 5)
    counted = files.modelscope(("train.train_iters_per_epoch", 7), model=GPT3).spec
    assert counted.training.max_steps == 70
    said = {line.key: line.text for line in files.modelscope(model=GPT3, samples=640).lines}
    assert said["train.max_epochs"] == "training.epochs = 10.0"  # and not the steps that ours are by default


@pytest.mark.parametrize(
    ("pair", "said"),
    [
        (("train.lr_scheduler", {"type": "LambdaLR"}), "schedule.name=noam"),
        (("train.hooks", [{"type": "MyHook"}]), "no such hook"),
        (("train.hooks", [{"type": "CheckpointHook"}]), "give --samples N"),
        (("megatron", {"world_size": 3, "tensor_model_parallel_size": 2}), "no multiple of"),
        (("train.optimizer.lrr", 1), "Did you mean train.optimizer.lr?"),
        (("task", "fill-mask"), "another task"),
        (("train.optimizer.betas", 0.9), "two numbers"),
    ],
)
def test_what_modelscope_says_and_cannot_be(files: Files, pair: tuple[str, Any], said: str) -> None:
    assert said in refusal(files.modelscope, pair, model=GPT3)


def test_modelscope_s_fields_of_a_record() -> None:
    """Of the reading alone: what trains on records checks the templates."""
    words = {"preprocessor.src_txt": "text1", "preprocessor.tgt_txt": "tgt_txt"}
    reading = Reading(words, modelscope.SYSTEM.defaults(), Facts())
    modelscope.SYSTEM.read(reading)
    assert reading.fields["task.records.source"] == "{text1}"
    assert "task.records.target" not in reading.fields


def test_a_lambda_is_answered(files: Files) -> None:
    lambda_lr = ("train.lr_scheduler", {"type": "LambdaLR", "options": {"by_epoch": False}})
    assert "give -o schedule.name=noam" in refusal(files.modelscope, lambda_lr, model=GPT3)
    words = ["schedule.name=noam", "schedule.warmup_steps=9"]
    spec = import_file(files.folder / "configuration.json", words).spec
    assert (spec.schedule.name, spec.schedule.warmup_steps) == ("noam", 9)


def test_modelscope_needs_its_model(files: Files) -> None:
    assert "there is none" in refusal(files.modelscope)
    (files.folder / "configuration.json").write_text('{\n "framework": "pytorch",  # torch\n "task": 1}')
    assert "configuration.json:2: character" in refusal(import_file, files.folder / "configuration.json")


def test_a_key_that_stands_twice_is_refused(files: Files) -> None:
    twice = json.dumps(MODELSCOPE).replace('"task":', '"task": "text-generation", "task":')
    assert "the key 'task' stands twice" in refusal(files.read, "configuration.json", twice)
    dotted = json.dumps({**MODELSCOPE, "pipeline.type": "gpt3-generation"})
    assert "the key 'pipeline.type' stands twice" in refusal(files.read, "configuration.json", dotted)
