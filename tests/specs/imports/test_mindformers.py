"""Configurations of MindFormers, in the words of its own files, become specs that lose nothing."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from gptbridge_specs.imports.files import flat
from tests.specs.imports.reading import Files, differing, refusal, value
from tests.specs.imports.texts import MINDFORMERS, changed, mindformers_13b, mindformers_52b, mindformers_lora

_MF = {"training.device", "training.max_steps", "training.epochs",
       "checkpoint.keep", "generation.top_k", "generation.strategy"}  # fmt: skip


@pytest.mark.parametrize(
    ("preset", "text"),
    [
        ("mindformers-gpt2-small", MINDFORMERS),
        ("mindformers-gpt2-small-lora", mindformers_lora()),
        ("mindformers-gpt2-13b", mindformers_13b()),
        ("mindformers-gpt2-52b", mindformers_52b()),
    ],
)
def test_mindformers_recipes_are_the_presets(files: Files, preset: str, text: str) -> None:
    imported = files.read("run.yaml", text)
    assert differing(imported, preset) == _MF
    assert imported.spec.training.epochs == 3
    gelus = ('"gelu"', '"fast_gelu"') if '"gelu"' in text else ('"fast_gelu"', '"gelu"')
    assert "model.activation" in differing(files.read("run.yaml", changed(text, gelus)), preset)


def test_every_key_has_a_line(files: Files) -> None:
    """Of a YAML: whatever it holds is a field, without effect for a reason, or not set."""
    imported = files.read("run.yaml", MINDFORMERS)
    keys = {key for key, _ in flat(yaml.safe_load(MINDFORMERS))}
    lines = [line for line in imported.lines if line.kind not in ("default", "note")]
    assert sorted(line.key for line in lines) == sorted(keys)
    assert all(line.text for line in lines)
    fields = {line.key: line.text for line in lines if line.kind == "field"}
    assert fields["optimizer.beta2"] == "optimizer.beta2 = 0.95"
    assert fields["runner_config.batch_size"].startswith("training.global_batch_size = 4")


@pytest.mark.parametrize(
    ("layout", "devices", "total", "parallel"),
    [
        ("False {parallel_mode: 1} {data_parallel: 4, model_parallel: 2}", None, 4, (1, 1, 1, 1)),
        ("True {parallel_mode: 0} {data_parallel: 4, model_parallel: 2}", 8, 32, (8, 1, 1, 1)),
        ("True {parallel_mode: 1, full_batch: True} {data_parallel: 4, model_parallel: 2}",
         None, 16, (4, 1, 2, 1)),
        ("True {parallel_mode: 1, full_batch: False} {data_parallel: 4, model_parallel: 2}",
         None, 32, (4, 1, 2, 1)),
        ("True {parallel_mode: 1, full_batch: True, enable_parallel_optimizer: True} {data_parallel: 4}",
         None, 16, (1, 4, 1, 1)),
        ("True {parallel_mode: 1, full_batch: True} "
         "{data_parallel: 2, pipeline_stage: 2, micro_batch_num: 8}",
         None, 64, (2, 1, 1, 2)),
    ],
)  # fmt: skip
def test_mindformers_batches(
    files: Files, layout: str, devices: int | None, total: int, parallel: tuple[int, ...]
) -> None:
    use, mode, config = layout.replace(" {", "|{").split("|")
    text = changed(
        MINDFORMERS,
        ("use_parallel: False", f"use_parallel: {use}"),
        ("{parallel_mode: 0, gradients_mean: True, full_batch: True, enable_parallel_optimizer: False}",
         mode),
        ("{data_parallel: 1, model_parallel: 1, pipeline_stage: 1, micro_batch_num: 1,\n"
         "                  vocab_emb_dp: True}", config),
    )  # fmt: skip
    spec = files.read("run.yaml", text, **({"devices": devices} if devices else {})).spec
    assert spec.training.global_batch_size == total
    own = spec.parallel
    assert (own.data, own.sharding, own.tensor, own.pipeline) == parallel
    if devices:
        assert "give --devices N" in refusal(files.read, "run.yaml", text)


def test_mindformers_accumulation_and_interleaving(files: Files) -> None:
    text = changed(MINDFORMERS, ("epochs: 3", "epochs: 3, gradient_accumulation_steps: 4"))
    spec = files.read("run.yaml", text).spec
    assert (spec.training.global_batch_size, spec.training.micro_batch_size) == (16, 4)


@pytest.mark.parametrize(
    ("words", "field", "expected"),
    [
        ("type: cosine, lr_end: 0.0, warmup_ratio: 0.03", "schedule.warmup_rate", 0.03),
        ("type: CosineWithWarmUpLR, warmup_steps: 7", "schedule.name", "cosine"),
        ("type: linear, total_steps: 70", "schedule.decay_steps", 70),
        ("type: linear", "schedule.min_lr", 0.0),
        ("type: linear", "schedule.name", "linear"),
        (
            "type: linear, warmup_steps: 7",
            "schedule.name",
            "polynomial",
        ),  # it falls from the warm-up's end on
        ("type: polynomial", "schedule.min_lr", 1e-7),
        ("type: polynomial, power: 2.0", "schedule.power", 2.0),
        ("type: polynomial, warmup_epochs: 2", "schedule.warmup_steps", 50),
    ],
)
def test_mindformers_schedules(files: Files, words: str, field: str, expected: Any) -> None:
    old = "{type: polynomial, learning_rate: 0.0001, lr_end: 0.00001, warmup_steps: 0, total_steps: -1}"
    text = changed(MINDFORMERS, (old, f"{{learning_rate: 0.0001, {words}}}"))
    assert value(files.read("run.yaml", text, samples=100).spec, field) == expected


@pytest.mark.parametrize(
    ("pattern", "targets"),
    [("'.*dense1|.*dense3'", ("q", "v")), ("'.*dense*'", ("q", "k", "v")), ("'.*mapping'", ("fc",)),
     ("'.*projection'", ("out", "proj"))],
)  # fmt: skip
def test_mindformers_lora_targets(files: Files, pattern: str, targets: tuple[str, ...]) -> None:
    text = mindformers_lora().replace("lora_dropout: 0.1", f"lora_dropout: 0.1, target_modules: {pattern}")
    lora = files.read("run.yaml", text).spec.task.lora
    assert lora is not None
    assert lora.targets == targets
    assert "matches none" in refusal(files.read, "run.yaml", text.replace(pattern, "'.*nothing'"))


def test_mindformers_may_evaluate_by_epochs(files: Files) -> None:
    text = changed(
        MINDFORMERS, ("do_eval: False", "do_eval: True\neval_step_interval: -1\neval_epoch_interval: 5")
    )
    assert files.read("run.yaml", text, samples=100).spec.evaluation.interval == 5 * 25
    assert "give --samples N" in refusal(files.read, "run.yaml", text)
    steps = changed(text, ("eval_step_interval: -1", "eval_step_interval: 30"))
    assert files.read("run.yaml", steps).spec.evaluation.interval == 30


def test_mindformers_scales_and_clips(files: Files) -> None:
    fixed = changed(MINDFORMERS, ("type: DynamicLossScaleUpdateCell", "type: FixedLossScaleUpdateCell"))
    assert files.read("run.yaml", fixed).spec.precision.loss_scale == 4294967296
    plain = changed(MINDFORMERS, ("use_clip_grad: True", "use_clip_grad: False"))
    assert files.read("run.yaml", plain).spec.optimizer.clip_grad_norm is None
