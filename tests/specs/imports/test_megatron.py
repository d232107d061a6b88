"""Configurations of Megatron, in the words of its own files, become specs that lose nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.specs.imports.reading import Files, refusal, value
from tests.specs.imports.texts import MEGATRON, changed


def test_megatron_s_script(files: Files) -> None:
    imported = files.read("pretrain.sh", MEGATRON)
    spec = imported.spec
    assert (spec.parallel.data, spec.parallel.tensor, spec.parallel.pipeline) == (2, 2, 2)
    assert spec.model.vocab_size == 50432  # the next multiple of 128 x 2
    assert spec.data.split == (949, 50, 1)
    assert (spec.schedule.max_lr, spec.schedule.warmup_rate, spec.schedule.decay_steps) == (
        1.5e-4,
        0.01,
        320000,
    )
    assert spec.precision.initial_loss_scale == 2**32
    assert spec.evaluation.interval == 1000  # its default: the script leaves it out
    larger = changed(MEGATRON, ("--global-batch-size 16", "--global-batch-size 32"))
    four = files.read("pretrain.sh", larger, "GPUS_PER_NODE=16")
    assert four.spec.parallel.data == 4


@pytest.mark.parametrize(
    ("words", "field", "expected"),
    [
        ("--use-distributed-optimizer", "parallel.sharding", 2),
        ("--recompute-activations", "training.recompute", "core_attn"),
        ("--recompute-granularity selective", "training.recompute", "core_attn"),
        ("--recompute-granularity full --recompute-method uniform", "training.recompute", "full"),
        ("--checkpoint-activations", "training.recompute", "full"),
        ("--no-bias-gelu-fusion", "model.activation", "gelu_erf"),
        ("--untie-embeddings-and-output-weights", "model.tie_word_embeddings", False),
        ("--make-vocab-size-divisible-by 64", "model.vocab_size", 50304),
        ("--eod-mask-loss", "data.mask_end_of_text", True),
        ("--loss-scale 1024", "precision.loss_scale", 1024.0),
        ("--exit-interval 100", "training.stop_after_steps", 100),
        ("--exit-duration-in-mins 230", "training.max_minutes", 230),
        ("--valid-data-path held", "data.validation_path", "held"),
        ("--sequence-parallel", "parallel.sequence", True),
        ("--seed=7", "training.seed", 7),
    ],
)
def test_megatron_values(files: Files, words: str, field: str, expected: Any) -> None:
    assert value(files.read("a.sh", MEGATRON).spec, field) != expected
    assert value(files.read("a.sh", MEGATRON.replace("--fp16", f"--fp16 {words}")).spec, field) == expected


@pytest.mark.parametrize(
    ("words", "weights"), [("0.7 a 0.3 b", (0.7, 0.3)), ("a b c", (1, 1, 1)), ("2 a", (2,))]
)
def test_megatron_blends(files: Files, words: str, weights: tuple[float, ...]) -> None:
    spec = files.read("a.sh", MEGATRON.replace("$DATA_PATH", words)).spec
    assert tuple(part.weight for part in spec.data.mixture) == weights
    assert spec.data.paths == tuple("abc"[: len(weights)])
    assert "before each prefix" in refusal(files.read, "a.sh", MEGATRON.replace("$DATA_PATH", "0.7 a b"))


def test_megatron_s_own_gelu_is_the_tanh(files: Files) -> None:
    text = MEGATRON.replace("--fp16", "--fp16 --no-bias-gelu-fusion --openai-gelu")
    assert files.read("a.sh", text).spec.model.activation == "gelu_tanh"


def test_megatron_counts_samples(files: Files) -> None:
    text = changed(
        MEGATRON, ("--train-iters 500000", "--train-samples 1600"),
        ("--lr-decay-iters 320000", "--lr-decay-samples 800"),
        ("--lr-warmup-fraction .01", "--lr-warmup-samples 160"), ("cosine", "linear"),
    )  # fmt: skip
    spec = files.read("a.sh", text).spec
    assert (spec.training.max_steps, spec.schedule.decay_steps, spec.schedule.warmup_steps) == (100, 50, 10)
    assert (spec.schedule.name, spec.schedule.power) == ("polynomial", 1.0)
