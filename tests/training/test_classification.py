"""Classifiers learn a separable task on each backend, and their checkpoints open elsewhere."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge import evaluate
from gptbridge.errors import BadInput, UsageError
from gptbridge_cli.displays import describe
from gptbridge_specs import SpecError, load_run
from tests.training.conftest import NO_DROPOUT, run_jobs

BACKENDS = ("torch", "paddle", "mindspore")
RUN = (
    *NO_DROPOUT,
    "model.hidden_size=32",
    "model.num_layers=2",
    "model.num_attention_heads=2",
    "model.max_position_embeddings=32",
    "task.name=classification",
    "task.num_labels=2",
    "task.records.format=sst2",
    "data.split=[1,0,0]",
    "training.seq_length=32",
    "training.global_batch_size=8",
    "training.epochs=5",
    "training.device=cpu",
    "schedule.max_lr=0.01",
    "evaluation.interval=0",
)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of each backend on sentences with the word good, or poor, among others; `dev` holds some more."""
    folder = tmp_path_factory.mktemp("classification")
    draw = random.Random(0)
    for name, size in (("train", 120), ("dev", 40)):
        lines = ["sentence\tlabel"]
        for _ in range(size):
            words = ["".join(draw.choices("bcd", k=3)) for _ in range(3)]
            label = draw.randint(0, 1)
            words.insert(draw.randint(0, len(words)), ("poor", "good")[label])
            lines.append(f"{' '.join(words)}\t{label}")
        (folder / f"{name}.tsv").write_text("\n".join(lines))
    overrides = [*RUN, f"data.path={folder / 'train.tsv'}"]
    for backend in BACKENDS:
        run_jobs(folder, backend, [{"run": str(folder / backend), "overrides": overrides}])
    return folder


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_separable_task_is_learned_and_its_measures_are_scikit_learns(backend: str, runs: Path) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    said = runs / f"{backend}.jsonl"
    found = evaluate(
        runs / backend, task="classification", data=runs / "dev.tsv", backend="torch", predictions=said
    )
    assert found["accuracy"] > 0.95
    rows = [json.loads(line) for line in said.read_text().splitlines()]
    truth, guesses = ([row[name] for row in rows] for name in ("label", "predicted"))
    assert truth == [int(line[-1]) for line in (runs / "dev.tsv").read_text().splitlines()[1:]]
    assert found["accuracy"] == metrics.accuracy_score(truth, guesses)
    assert found["f1"] == metrics.f1_score(truth, guesses)
    assert found["matthews"] == metrics.matthews_corrcoef(truth, guesses)
    assert (found["of 0"], found["of 1"]) == (truth.count(0), truth.count(1))


def test_a_checkpoint_opens_as_transformers_classifier(runs: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    pytest.importorskip("sklearn")
    said = runs / "scores.jsonl"
    evaluate(runs / "paddle", task="classification", data=runs / "dev.tsv", backend="torch", predictions=said)
    checkpoint = sorted((runs / "paddle/checkpoints").iterdir())[-1]
    model = transformers.GPT2ForSequenceClassification.from_pretrained(checkpoint).eval()
    texts = [line.rpartition("\t")[0] for line in (runs / "dev.tsv").read_text().splitlines()[1:]]
    tokens = torch.full((len(texts), 32), model.config.pad_token_id)
    for row, text in enumerate(texts):
        tokens[row, : len(text)] = torch.tensor(list(text.encode()))
    with torch.no_grad():
        scores = model(tokens).logits.numpy()
    ours = [json.loads(line)["scores"] for line in said.read_text().splitlines()]
    np.testing.assert_allclose(ours, scores, atol=1e-5)
    assert np.abs(scores - np.roll(scores, 1, 0)).max() > 0.1


def test_a_classifier_has_no_perplexity() -> None:
    with pytest.raises(SpecError, match="a classifier has none, but loss"):
        load_run(overrides=[*RUN, "evaluation.metric=perplexity"])
    load_run(overrides=[*RUN, "evaluation.metric=loss"])
    event: dict[str, Any] = {"event": "evaluate", "step": 2, "loss": 0.5, "tokens": 80, "seconds": 0.0}
    assert describe(event) == ["evaluate at step 2: loss 0.500000, 80 texts in 0.0 s"]
    said = describe({**event, "perplexity": 1.649})
    assert said == ["evaluate at step 2: loss 0.500000, perplexity 1.649, 80 tokens in 0.0 s"]


def test_what_a_classifier_is_not_asked_is_refused(runs: Path) -> None:
    with pytest.raises(BadInput, match=r"classifier with 2 classes.*no language head"):
        evaluate(runs / "torch", task="perplexity", data=runs / "dev.tsv", backend="torch")
    asked: dict[str, Any] = {"task": "classification", "data": runs / "dev.tsv", "backend": "torch"}
    with pytest.raises(UsageError, match=r"model\.hidden_size=64 has no place here"):
        evaluate(runs / "torch", **asked, overrides=["model.hidden_size=64"])
    before = (runs / "dev.tsv").read_bytes()
    with pytest.raises(UsageError, match=r"--predictions .*dev\.tsv: is there already"):
        evaluate(runs / "torch", **asked, predictions=runs / "dev.tsv")
    assert (runs / "dev.tsv").read_bytes() == before
    with pytest.raises(UsageError, match=r"--predictions .*: there is no folder"):
        evaluate(runs / "torch", **asked, predictions=runs / "none" / "said.jsonl")
    with pytest.raises(UsageError, match="--stride: has no place in classification"):
        evaluate(runs / "torch", task="classification", data=runs / "dev.tsv", backend="torch", stride=4)
    hf = Path(__file__).parents[1] / "weights/conversion/vectors/hf"
    with pytest.raises(BadInput, match="has no classes"):
        evaluate(hf, task="classification", data=runs / "dev.tsv", backend="torch")
