"""Early stopping, the best checkpoint, a time limit, a mixture: a resumed run goes on as it would have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptbridge.checkpoint.state import Best, read_state
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.errors import UsageError
from gptbridge.training.events import history, read_events
from gptbridge.training.watching import Watch
from gptbridge_specs import SpecError, load_run
from gptbridge_specs.run import CheckpointSpec, EvaluationSpec
from tests.data.test_mixture import write
from tests.training.conftest import TINY, kinds_of, numbers_of, run_jobs


def after(losses: list[float | None], **spec: Any) -> Watch:
    watch = Watch(EvaluationSpec.model_validate(spec))
    for step, loss in enumerate(losses, start=1):
        watch.take(step, {"loss": loss, "perplexity": loss and loss + 1})
    return watch


def test_the_best_is_the_lowest() -> None:
    losses = [3.0, 2.0, 2.5, 2.0, None]
    assert after(losses).best == Best(metric="loss", value=2.0, step=2, since=3)
    assert after(losses, metric="perplexity").best == Best(metric="perplexity", value=3.0, step=2, since=3)
    assert after([None]).best is None


def test_patience_counts_evaluations_in_turn() -> None:
    assert not after([3.0, 4.0, 2.0, 4.0], patience=2).exhausted
    assert after([3.0, 4.0, 4.0], patience=2).exhausted
    assert not after([3.0, 4.0, 4.0]).exhausted
    assert after([3.0, 2.95, 2.91], patience=2, min_delta=0.1).exhausted
    assert not after([3.0, 2.95, 2.85], patience=2, min_delta=0.1).exhausted


def test_another_metric_begins_anew() -> None:
    best = after([3.0]).best
    assert Watch(EvaluationSpec(), best).best == best
    assert Watch(EvaluationSpec(metric="perplexity"), best).best is None


def test_the_best_is_kept_beside_the_newest(tmp_path: Path) -> None:
    def fill(folder: Path) -> None:
        (folder / "file").write_text("x")

    store = CheckpointStore(tmp_path / "checkpoints")
    for step in range(1, 6):
        store.save(step, fill)
        store.prune(CheckpointSpec(keep_best=True), best=1)
    assert store.steps() == [1, 4, 5]
    assert (store.folder / "best").resolve() == store.path(1).resolve()
    store.prune(CheckpointSpec(keep_best=True), best=5)
    assert (store.folder / "best").resolve() == store.path(5).resolve()
    store.prune(CheckpointSpec(), best=4)
    assert store.steps() == [4, 5]


@pytest.mark.parametrize("override", ["checkpoint.keep_best=true", "evaluation.patience=2"])
def test_what_goes_by_evaluations_needs_them(override: str) -> None:
    load_run("gpt2-tiny", [override])
    with pytest.raises(SpecError, match="go by evaluations"):
        load_run("gpt2-tiny", [override, "evaluation.interval=0"])


def test_a_metric_that_there_is_not() -> None:
    load_run("gpt2-tiny", ["evaluation.metric=perplexity"])
    with pytest.raises(SpecError, match=r"evaluation\.metric: .*loss.*perplexity"):
        load_run("gpt2-tiny", ["evaluation.metric=accuracy"])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that ends early, whole and in two parts, and one that its time limit ends at each step."""
    folder = tmp_path_factory.mktemp("watching")
    train = [write(folder, letter, letter) for letter in "ab"]
    held = write(folder, "held", "c")
    # What it learns is not what it is evaluated on: the loss there rises soon.
    overrides = [
        *TINY, f"data.mixture=0.7 {train[0]} 0.3 {train[1]}", f"data.validation_path={held}",
        "data.split=1,0,0", "training.max_steps=40", "evaluation.interval=2", "evaluation.patience=3",
        "checkpoint.keep_best=true", "checkpoint.interval=5", "schedule.max_lr=0.01",
        "evaluation.global_batch_size=2",
    ]  # fmt: skip
    whole, half, timed = (str(folder / name) for name in ("whole", "half", "timed"))
    stop = ["training.stop_after_steps=3"]
    run_jobs(
        folder,
        "torch",
        [
            {"run": whole, "overrides": overrides},
            {"run": half, "overrides": [*overrides, *stop]},
            {"run": half, "resume": "auto"},
            {"run": half, "resume": "auto"},
            {"run": timed, "overrides": [*overrides, "training.max_minutes=1e-9"]},
            {"run": timed, "resume": "auto"},
        ],
    )
    return folder


def evaluations(run: Path) -> list[dict[str, Any]]:
    events = history(read_events(run / "events.jsonl"))
    return [{k: e[k] for k in ("step", "loss", "best")} for e in events if e["event"] == "evaluate"]


def test_a_run_ends_early_with_its_best_and_its_last(runs: Path) -> None:
    found = evaluations(runs / "whole")
    best = max(e["step"] for e in found if e["best"])
    last = found[-1]["step"]
    assert last == best + 3 * 2 < 40
    store = CheckpointStore(runs / "whole" / "checkpoints")
    assert best in store.steps()
    assert store.steps()[-1] == last
    assert (store.folder / "best").resolve() == store.path(best).resolve()
    end = read_events(runs / "whole" / "events.jsonl")[-1]
    assert (end["event"], end["reason"], end["step"]) == ("end", "early", last)
    losses = {e["step"]: e["loss"] for e in found}
    assert losses[best] == min(losses.values())


def test_a_resumed_run_compares_on(runs: Path) -> None:
    """It ended between two evaluations, and what was best is known from its checkpoint."""
    assert evaluations(runs / "half") == evaluations(runs / "whole")
    assert numbers_of(runs / "half") == numbers_of(runs / "whole")
    states = [
        read_state(sorted((runs / name / "checkpoints").glob("step-*"))[-1]) for name in ("half", "whole")
    ]
    assert states[0].best == states[1].best
    assert states[0].best is not None


def test_a_run_that_ended_early_ends_again(runs: Path) -> None:
    events = read_events(runs / "half" / "events.jsonl")
    last = events[max(i for i, e in enumerate(events) if e["event"] == "resume") :]
    assert [e["event"] for e in last] == ["resume", "warning", "end"]
    assert last[-1]["reason"] == "early"


def test_a_time_limit_ends_a_run_at_its_next_step(runs: Path) -> None:
    assert kinds_of(runs / "timed") == [
        "start", "step", "checkpoint", "end", "resume", "step", "evaluate", "checkpoint", "end"
    ]  # fmt: skip
    ends = [e for e in read_events(runs / "timed" / "events.jsonl") if e["event"] == "end"]
    assert [(e["reason"], e["step"]) for e in ends] == [("stopped", 1), ("stopped", 2)]
    whole = numbers_of(runs / "whole")
    assert numbers_of(runs / "timed") == {step: whole[step] for step in (1, 2)}


def test_a_mixture_may_not_change(runs: Path) -> None:
    from gptbridge.training.resume import allow_resume

    state = read_state(sorted((runs / "whole" / "checkpoints").glob("step-*"))[-1])
    words = {"digest": state.data.digest, "tokenizer": state.data.tokenizer}
    assert allow_resume(state, state.spec, **words) == []
    other = json.loads(state.spec.model_dump_json())
    other["data"]["mixture"][0]["weight"] = 0.6
    with pytest.raises(UsageError, match=r"data\.mixture"):
        allow_resume(state, type(state.spec).model_validate(other), **words)
    other["data"]["mixture"][0]["weight"] = 0.7
    other["data"]["validation_path"] = None
    assert allow_resume(state, type(state.spec).model_validate(other), **words) == []


@pytest.mark.parametrize(
    ("overrides", "samples"),
    [
        (["training.global_batch_tokens=4096"], 128),
        (["training.global_batch_tokens=1"], 1),
        (["training.global_batch_tokens=1000"], 31),
        (["training.global_batch_tokens=1000", "training.micro_batch_size=8"], 32),
        (["training.global_batch_tokens=1000", "training.micro_batch_size=8", "parallel.data=3"], 24),
        (["training.global_batch_tokens=1000", "parallel.sharding=2"], 32),
        (["training.global_batch_tokens=1000", "parallel.data=auto"], 31),
        (["training.global_batch_tokens=null"], 8),
    ],
)
def test_a_batch_counts_tokens(overrides: list[str], samples: int) -> None:
    spec = load_run("gpt2-tiny", ["training.seq_length=32", *overrides])
    assert spec.training.global_batch_size == samples
    again = type(spec).model_validate_json(spec.model_dump_json())
    assert again == spec


def test_tokens_and_samples_exclude_each_other(tmp_path: Path) -> None:
    from gptbridge.training.start import resolve

    words = ["training.global_batch_tokens=1024"]
    assert resolve(None, words, tmp_path, None).spec.training.global_batch_size == 4
    with pytest.raises(
        UsageError, match=r"training.global_batch_size: training.global_batch_tokens=1024 decides it"
    ):
        resolve(None, [*words, "training.global_batch_size=8"], tmp_path, None)
    with pytest.raises(SpecError, match="global_batch_tokens: 'x' is not a whole number"):
        load_run("gpt2-tiny", ["training.global_batch_tokens=x"])
