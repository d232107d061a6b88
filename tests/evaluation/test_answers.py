"""What a model answers to the sources of records: loss, predictions, and how near they are to the targets."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge import evaluate, open_checkpoint, reference
from gptbridge.errors import BadInput, UsageError
from gptbridge.evaluation.answers import nearness

PAIRS = [("ab a", "b ab ab ab ab"), ("ab", " ab ab ab ab a"), ("ab a", "bad"), ("b", " ab ab ab xyz")]
OPTIONS = ("generation.max_new_tokens=14",)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("pairs") / "pairs.jsonl"
    file.write_text("\n".join(json.dumps({"src_txt": source, "tgt_txt": target}) for source, target in PAIRS))
    return file


def measured(model: Path, data: Path, **words: Any) -> Any:
    return evaluate(model, task="instruction", data=data, backend="torch", overrides=OPTIONS, **words)


def test_answers_are_written_and_measured_as_the_libraries_do(
    model: Path, pairs: Path, tmp_path: Path
) -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    rouge = pytest.importorskip("rouge_score.rouge_scorer")
    found = measured(model, pairs, predictions=tmp_path / "said.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert [(row["source"], row["target"]) for row in rows] == PAIRS
    said, wanted = ([row[name] for row in rows] for name in ("predicted", "target"))
    assert said == ["b ab ab ab ab ", " ab ab ab ab a", "b ab ab ab ab ", " ab ab ab ab a"]
    assert found["exact_match"] == 0.5
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(said, [wanted]).score)
    assert 1 < found["bleu"] < 99
    scorer = rouge.RougeScorer(["rouge1", "rouge2", "rougeL"])
    scores = [scorer.score(target, text) for target, text in zip(wanted, said, strict=True)]
    for kind in ("rouge1", "rouge2", "rougeL"):
        assert found[kind] == pytest.approx(np.mean([score[kind].fmeasure for score in scores]))
    assert found["rouge1"] > found["rouge2"]
    with open_checkpoint(model) as opened:
        weights = dict(opened.merged().arrays)
        losses = []
        for source, target in PAIRS:
            ids = np.array([[*(source + target).encode(), 256]], np.int32)
            each = reference.token_losses(opened.model, weights, ids[:, :-1], ids[:, 1:])
            losses.append(each[0, len(source) - 1 :])
    assert found["loss"] == pytest.approx(np.concatenate(losses).mean(), rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert [row["loss"] for row in rows] == pytest.approx([loss.mean() for loss in losses], rel=1e-5)
    assert (found["records"], found["tokens"]) == (4, sum(map(len, losses)))


def test_continuations_have_a_loss_and_no_answers(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "texts.jsonl"
    data.write_text('{"src_txt": "ab ab"}\n{"src_txt": "abc"}\n')
    found = measured(model, data)
    assert set(found.measures) == {"loss", "perplexity"}
    with pytest.raises(UsageError, match=r"--predictions: .*no targets"):
        measured(model, data, predictions=tmp_path / "said.jsonl")
    data.write_text('{"src_txt": ""}\n')
    with pytest.raises(BadInput, match="record 1: its source is empty"):
        measured(model, data)


def test_chinese_is_counted_by_characters() -> None:
    pytest.importorskip("sacrebleu")
    pytest.importorskip("rouge_score")
    wanted = ["床前明月光疑是地上霜。", "举头望明月"]
    same = nearness(wanted, wanted)
    assert same["bleu_zh"] == pytest.approx(100)
    assert same["rougeL"] == same["exact_match"] == 1
    other = nearness(["床前明月光疑是地上雪。", "低头思故乡"], wanted)
    assert other["rouge1"] == pytest.approx((9 / 10 + 1 / 5) / 2)
    assert 10 < (other["bleu_zh"] or 0) < 90


def test_what_measures_answers_is_an_extra(model: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(UsageError, match=r"needs sacrebleu.*metrics"):
        measured(model, pairs)
