"""A model that knows one thing, texts to measure it on, and two who measure: we, and the published ways."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge.data.tokenizers import load_tokenizer
from gptbridge_specs import ModelSpec
from tests.training.conftest import ENVIRONMENT
from tests.weights.conversion.checkpoints import random_weights, write_hugging_face

MODEL = ModelSpec(
    vocab_size=257,
    hidden_size=24,
    num_layers=2,
    num_attention_heads=3,
    max_position_embeddings=32,
    tie_word_embeddings=False,
    hidden_dropout_prob=0,
    attention_probs_dropout_prob=0,
)
KNOWN = (
    (" ", "a"),
    ("a", "b"),
    ("b", " "),
)  # what follows what: "ab ab ab" is the one text that the model can say

OURS = """
import json, sys
import gptbridge
backend, folder, jobs = json.loads(sys.stdin.read())
print(json.dumps([gptbridge.evaluate(folder, backend=backend, **job).as_dict() for job in jobs]))
"""


def write_model(folder: Path) -> Path:
    weights = random_weights(MODEL, 3)
    for place, (before, after) in enumerate(KNOWN):
        weights["wte.weight"][ord(before), place] += 10
        weights["lm_head.weight"][ord(after), place] += 2
    write_hugging_face(folder, MODEL, weights)
    load_tokenizer("byte").save(folder)
    return folder


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model in Hugging Face's form, with the byte tokenizer."""
    return write_model(tmp_path_factory.mktemp("evaluated") / "model")


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files for every task."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "wiki.txt").write_text(WIKI)
    (folder / "short.txt").write_text("ab ab")
    (folder / "plain.txt").write_text("Žluťoučký kůň , \n  said N 's 北京 ( 1 ) .\n" * 5)
    write_records(folder / "lambada.jsonl", [{"text": text} for text in CLOZES])
    write_records(folder / "lines.jsonl", PAIRS)
    write_records(folder / "choices.jsonl", QUESTIONS)
    return folder


def write_records(path: Path, records: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def ours(folder: Path, jobs: Sequence[dict[str, Any]], backend: str = "torch") -> list[dict[str, Any]]:
    """Return what `gptbridge.evaluate` finds, for each job."""
    request = json.dumps([backend, str(folder), jobs], default=str)
    return finished([sys.executable, "-c", OURS], request)


def published(folder: Path, jobs: Sequence[dict[str, Any]], scratch: Path) -> list[dict[str, Any]]:
    """Return what the published procedures find, for each job."""
    path = scratch / "jobs.json"
    path.write_text(json.dumps(jobs, default=str))
    return finished([sys.executable, str(Path(__file__).with_name("published.py")), str(folder), str(path)])


def finished(
    command: Sequence[str], request: str = "", environment: Mapping[str, str] = ENVIRONMENT
) -> list[dict[str, Any]]:
    """Return the JSON of the last line that a command prints."""
    done = subprocess.run(
        command, input=request, capture_output=True, text=True, timeout=280, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def differences(found: dict[str, Any], expected: dict[str, float]) -> dict[str, float]:
    """Return how far each of the expected measures is off, relatively."""
    measures = found["measures"]
    return {name: abs(measures[name] - value) / max(abs(value), 1e-9) for name, value in expected.items()}


_PARAGRAPH = (
    ' The <unk> \'s first 1 @,@ 000 ships @-@ of @-@ war ( built in N ) were " fast " ; others'
    " [ 3 @.@ 5 kn ] , ' slow ' . ab ab ab ab : 20 ° N ! What 's left ? {{ }} ' s ' <|endoftext|> ab . \n"
)
WIKI = (
    " \n = Ships = \n \n"
    + _PARAGRAPH
    + " \n = = History = = \n \n"
    + _PARAGRAPH.replace("ships", "boats")
    + " Second line , tab\n"
    + " = = = Later = = = \n \n ab ab\tab cut off here \n \n = = = = Last = = = = \n never flushed .\n"
)
_stream = np.random.default_rng(8)
CLOZES = (
    "ab ab ab ab",
    "ab ab ba",
    "  ab ab ab \n",
    "b ab",
    "alone",
    "x ab ab",
    "ab " * 9 + "ab",
    "abab <|endoftext|> ab",
    *("".join(_stream.choice(list("ab  "), 12)) + "b ab" + end for end in (" ab", " ba", " ab b") * 9),
)
PAIRS = [
    {"src_txt": "ab ab"},
    {"src_txt": "a question, long enough to be cut before its end"},
    {"src_txt": "b ab", "tgt_txt": " ab 北京"},
    {"src_txt": "", "tgt_txt": "<|endoftext|>"},
    {"src_txt": "x", "other": 3},
]
QUESTIONS = [
    {"context": "ab ab", "choices": ["ab", "ba", "b"], "label": 0},
    {"context": "ab", "choices": ["a", "ab ab ab"], "label": 1},
    {
        "context": "Which is the longest?",
        "choices": ["x", "the longest of all words", "ab"],
        "label": 2,
    },
    {"context": "ab b", "choices": ["ab a", "b"], "label": 1},
    *(
        {
            "context": "".join(_stream.choice(list("ab xyz"), 9)).strip() + ".",
            "choices": ["".join(_stream.choice(list("abxyz"), length)) for length in (2, 5, 9)],
            "label": n % 3,
        }
        for n in range(20)
    ),
]
