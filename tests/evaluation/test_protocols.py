"""Each protocol against the published procedure, written anew in published.py, on transformers' logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.evaluation.conftest import differences, ours, published

# Our keywords, then the published function and its arguments. Numbers that are no multiples of each other.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "strict": (
        {"window": 20, "stride": 7, "data": "wiki.txt"},
        {"function": "direct", "window": 20, "stride": 7, "path": "wiki.txt"},
    ),
    "strict, every stride one": (
        {"window": 5, "stride": 1, "data": "short.txt"},
        {"function": "direct", "window": 5, "stride": 1, "path": "short.txt"},
    ),
    "strict, no overlap": (
        {"window": 32, "stride": 32, "data": "plain.txt"},
        {"function": "direct", "window": 32, "stride": 32, "path": "plain.txt"},
    ),
    "strict, by itself": (
        {"data": "plain.txt"},
        {"function": "direct", "window": 32, "stride": 16, "path": "plain.txt"},
    ),
    "strict, detokenized": (
        {"window": 31, "stride": 10, "data": "wiki.txt", "detokenize": True},
        {"function": "direct", "window": 31, "stride": 10, "path": "wiki.txt", "detokenized": True},
    ),
    "paddlenlp": (
        {"protocol": "paddlenlp", "window": 20, "stride": 7, "data": "wiki.txt"},
        {"function": "windows", "window": 20, "stride": 7, "masked": True, "path": "wiki.txt"},
    ),
    "paddlenlp, shorter than a window": (
        {"protocol": "paddlenlp", "stride": 3, "data": "short.txt"},
        {"function": "windows", "window": 32, "stride": 3, "masked": True, "path": "short.txt"},
    ),
    "fleetx": (
        {"protocol": "fleetx", "window": 20, "stride": 7, "data": "wiki.txt"},
        {"function": "windows", "window": 20, "stride": 7, "masked": False, "path": "wiki.txt"},
    ),
    "fleetx, no overlap": (
        {"protocol": "fleetx", "window": 24, "stride": 24, "data": "wiki.txt"},
        {"function": "windows", "window": 24, "stride": 24, "masked": False, "path": "wiki.txt"},
    ),
    "fleetx-develop": (
        {
            "protocol": "fleetx-develop",
            "window": 20,
            "stride": 7,
            "batch_size": 3,
            "logging_interval": 4,
            "data": "wiki.txt",
        },
        {
            "function": "windows",
            "window": 20,
            "stride": 7,
            "masked": False,
            "batch_size": 3,
            "interval": 4,
            "path": "wiki.txt",
        },
    ),
    "mindformers": (
        {"protocol": "mindformers", "window": 19, "batch_size": 5, "data": "wiki.txt"},
        {"function": "mindformers", "window": 19, "batch_size": 5, "path": "wiki.txt"},
    ),
    "modelscope": (
        {"protocol": "modelscope", "window": 30, "batch_size": 2, "data": "lines.jsonl"},
        {"function": "modelscope", "window": 30, "batch_size": 2, "path": "lines.jsonl"},
    ),
    "cloze, strict": (
        {"task": "cloze", "window": 14, "data": "lambada.jsonl"},
        {"function": "lambada", "window": 14, "strict": True, "path": "lambada.jsonl"},
    ),
    "cloze, paddlenlp": (
        {"task": "cloze", "protocol": "paddlenlp", "data": "lambada.jsonl"},
        {"function": "lambada", "window": 32, "strict": False, "path": "lambada.jsonl"},
    ),
    "cloze, fleetx": (
        {"task": "cloze", "protocol": "fleetx", "data": "lambada.jsonl"},
        {"function": "lambada", "window": 32, "strict": False, "path": "lambada.jsonl"},
    ),
    "cloze, fleetx-develop": (
        {"task": "cloze", "protocol": "fleetx-develop", "batch_size": 4, "data": "lambada.jsonl"},
        {
            "function": "lambada",
            "window": 32,
            "strict": False,
            "batch_size": 4,
            "interval": 10,
            "path": "lambada.jsonl",
        },
    ),
    "multiple choice": (
        {"task": "multiple-choice", "data": "choices.jsonl"},
        {"function": "choices", "window": 32, "path": "choices.jsonl"},
    ),
}


@pytest.fixture(scope="module")
def results(model: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Any, Any]]:
    """What we found and what the published procedure finds, for each case."""
    asked = [{"task": "perplexity", **words, "data": texts / words["data"]} for words, _ in CASES.values()]
    jobs = [{**job, "path": texts / job["path"]} for _, job in CASES.values()]
    expected = published(model, jobs, tmp_path_factory.mktemp("jobs"))
    return dict(zip(CASES, zip(ours(model, asked), expected, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_a_protocol_is_the_published_procedure(case: str, results: dict[str, tuple[Any, Any]]) -> None:
    found, expected = results[case]
    assert expected
    for name, difference in differences(found, expected).items():
        assert difference < 1e-5, (name, found["measures"], expected)


def test_every_quirk_shows(results: dict[str, tuple[Any, Any]]) -> None:
    """The comparison can tell: no two protocols find the same number in the same file."""
    measures = {case: found["measures"] for case, (found, _) in results.items()}
    names = ("strict", "strict, detokenized", "paddlenlp", "fleetx", "fleetx-develop", "mindformers")
    losses = [measures[name]["loss"] for name in names]
    assert min(abs(a - b) for n, a in enumerate(losses) for b in losses[:n]) > 1e-3
    right = [measures[f"cloze, {name}"]["accuracy"] for name in ("strict", "paddlenlp", "fleetx-develop")]
    assert len(set(right)) == 3
    assert 0.1 < right[0] < 0.9
    found = measures["multiple choice"]
    assert 0.1 < found["accuracy"] != found["normalised_accuracy"]
