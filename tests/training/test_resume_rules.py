"""What may change when a run is resumed, and what is refused."""

from __future__ import annotations

import pytest

from gptbridge.checkpoint.state import TrainingState, state_after
from gptbridge.errors import UsageError
from gptbridge.session import TrainerState
from gptbridge.training.resume import MAY_CHANGE, allow_resume, changes
from gptbridge_specs import RunSpec, load_run

BEFORE = load_run("gpt2-tiny", ["training.max_steps=100"])


def state(spec: RunSpec = BEFORE) -> TrainingState:
    return state_after(
        50, spec, TrainerState(updates=50), backend="torch", digest="d" * 64, tokenizer="t" * 64
    )


def resume(*overrides: str, digest: str = "d" * 64, tokenizer: str = "t" * 64) -> list[str]:
    spec = load_run("gpt2-tiny", ["training.max_steps=100", *overrides])
    return allow_resume(state(), spec, digest=digest, tokenizer=tokenizer)


@pytest.mark.parametrize(
    "override",
    [
        "training.stop_after_steps=60",
        "training.device=gpu",
        "training.micro_batch_size=2",
        "training.recompute=full",
        "training.compile=true",
        "training.log_interval=10",
        "checkpoint.interval=7",
        "evaluation.interval=9",
        "generation.top_k=5",
        "data.path=elsewhere",
        "parallel.data=2",
    ],
)
def test_what_leaves_the_numbers_alone_may_change(override: str) -> None:
    assert resume(override) == []


@pytest.mark.parametrize(
    "override", ["schedule.max_lr=1e-4", "optimizer.weight_decay=0", "precision.compute=bf16"]
)
def test_what_changes_the_curve_is_announced(override: str) -> None:
    field = override.partition("=")[0]
    (warning,) = resume(override)
    assert field in warning
    assert "the checkpoint has" in warning


@pytest.mark.parametrize(
    ("override", "before", "now"),
    [
        ("model.num_layers=3", "4", "3"),
        ("training.seed=3", "1234", "3"),
        ("training.global_batch_size=4", "8", "4"),
        ("training.seq_length=64", "256", "64"),
        ("data.shuffle=false", "True", "False"),
        ("data.mask_end_of_text=true", "False", "True"),
        ("optimizer.name=sgd", "adamw", "sgd"),
        ("task.num_labels=2", "None", "2"),
    ],
)
def test_what_decides_the_run_is_refused_by_name(override: str, before: str, now: str) -> None:
    with pytest.raises(UsageError) as caught:
        resume(override)
    assert f"{override.partition('=')[0]}: {now}, the checkpoint has {before}" in str(caught.value)
    assert caught.value.exit_code == 2


def test_every_refusal_has_its_line() -> None:
    with pytest.raises(UsageError) as caught:
        resume("training.seed=3", "model.num_layers=3")
    assert len(str(caught.value).splitlines()) == 2


def test_other_data_and_tokenizer_are_refused() -> None:
    with pytest.raises(UsageError, match=r"data\.path"):
        resume(digest="e" * 64)
    with pytest.raises(UsageError, match=r"data\.tokenizer"):
        resume(tokenizer="u" * 64)


def test_max_steps_cannot_lie_before_the_checkpoint() -> None:
    with pytest.raises(UsageError, match="max_steps"):
        resume("training.max_steps=40")


def test_more_steps_are_announced_only_where_they_stretch_the_schedule() -> None:
    (warning,) = resume("training.max_steps=200")
    assert "training.max_steps" in warning
    fixed = load_run("gpt2-tiny", ["schedule.decay_steps=100", "training.max_steps=100"])
    longer = load_run("gpt2-tiny", ["schedule.decay_steps=100", "training.max_steps=200"])
    assert allow_resume(state(fixed), longer, digest="d" * 64, tokenizer="t" * 64) == []


def test_another_micro_batch_is_announced_where_dropout_goes_by_it() -> None:
    assert resume("training.micro_batch_size=2") == []  # the default preset has no dropout
    wet = load_run("gpt2-tiny", ["model.hidden_dropout_prob=0.1"])
    cut = load_run("gpt2-tiny", ["model.hidden_dropout_prob=0.1", "training.micro_batch_size=2"])
    (warning,) = allow_resume(state(wet), cut, digest="d" * 64, tokenizer="t" * 64)
    assert "training.micro_batch_size: 2, the checkpoint has 8" in warning


LORA = ["task.lora.rank=2", "task.lora.dropout=0.1"]


@pytest.mark.parametrize(
    ("before", "now", "announced"),
    [
        (["model.hidden_dropout_prob=0.1"], ["training.micro_batch_size=8"], 0),  # as it was, by another name
        (["model.attention_probs_dropout_prob=0.1"], ["parallel.data=2"], 1),
        (["model.attention_probs_dropout_prob=0.1"], ["parallel.data=2", "training.micro_batch_size=4"], 1),
        (["model.attention_probs_dropout_prob=0.1"], ["parallel.tensor=2"], 0),
        (LORA, ["training.micro_batch_size=2"], 1),
        (LORA[:1], ["training.micro_batch_size=2"], 0),
    ],
)
def test_what_the_micro_batch_comes_to_counts(before: list[str], now: list[str], announced: int) -> None:
    first, then = (load_run("gpt2-tiny", words) for words in (before, before + now))
    warnings = allow_resume(state(first), then, digest="d" * 64, tokenizer="t" * 64)
    assert len(warnings) == announced


def test_the_table_names_real_fields() -> None:
    known = {change.field for change in changes(BEFORE, BEFORE)}
    content = BEFORE.model_dump()
    for entry in MAY_CHANGE:
        section, _, field = entry.partition(".")
        assert section in content
        assert not field or field in content[section]
    assert known == set()
