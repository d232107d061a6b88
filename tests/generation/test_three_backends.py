"""From one checkpoint, three backends and Hugging Face write the same tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from gptbridge.rules.decoding import Past, next_token
from gptbridge_specs.generation import GenerationSpec
from tests.training.conftest import ENVIRONMENT

PROMPTS = ["a", "def f(x):\n", "Die Straße ist lang und", "The quick brown fox jumps over the lazy dog"]
NEW, END = 128, 256
SAMPLE: dict[str, Any] = {
    "strategy": "sample", "top_k": 40, "top_p": 0.95, "temperature": 1.2, "repetition_penalty": 1.1,
    "num_return_sequences": 2, "seed": 11, "max_new_tokens": 40,
}  # fmt: skip
BEAM: dict[str, Any] = {
    "strategy": "beam", "beams": 3, "num_return_sequences": 2, "length_penalty": 0.7, "max_new_tokens": 40
}  # fmt: skip
JOBS: list[dict[str, Any]] = [{"max_new_tokens": NEW}, {"max_new_tokens": NEW, "rows": 1}, SAMPLE, BEAM]

SCRIPT = """
import json, sys, gptbridge
folder, backend, prompts, jobs = json.loads(sys.stdin.read())
found = []
for job in jobs:
    words = dict(backend=backend, tokenizer="byte", overrides={"training.device": "cpu"})
    texts = gptbridge.generate(folder, prompts, warn=lambda message: None, **words, **job)
    found.append([[each.tokens, each.log_probs] for each in texts])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def peer() -> GPT2LMHeadModel:
    torch.set_num_threads(1)  # many processes share few cores
    torch.manual_seed(8)
    config = GPT2Config(
        vocab_size=257, n_positions=192, n_embd=48, n_layer=2, n_head=3, initializer_range=0.3,
        bos_token_id=END, eos_token_id=END, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def folder(peer: GPT2LMHeadModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("peer")
    peer.save_pretrained(path)
    return path


def ids(prompt: str) -> torch.Tensor:
    return torch.tensor([list(prompt.encode())])


def written(row: torch.Tensor, prompt: str) -> list[int]:
    tokens = row[len(prompt.encode()) :].tolist()
    return tokens[: tokens.index(END)] if END in tokens else tokens


def sampled(peer: GPT2LMHeadModel, prompt: str, sequence: int) -> list[int]:
    """Draw again from Hugging Face's logits of the whole text, without a cache."""
    spec = GenerationSpec(**SAMPLE)
    tokens: list[int] = []
    for position in range(SAMPLE["max_new_tokens"]):
        seen = [*prompt.encode(), *tokens]
        with torch.inference_mode():
            logits = np.asarray(peer(torch.tensor([seen])).logits[0, -1])
        token = next_token(logits, spec, Past(seen, position, (END,)), sequence=sequence)
        if token == END:
            break
        tokens.append(token)
    return tokens


@pytest.fixture(scope="module")
def greedy(peer: GPT2LMHeadModel) -> list[list[int]]:
    found = [
        written(peer.generate(ids(prompt), max_new_tokens=NEW, do_sample=False)[0], prompt)
        for prompt in PROMPTS
    ]
    assert min(len(set(tokens)) for tokens in found if len(tokens) == NEW) > 8, "too dull to tell much"
    return found


@pytest.fixture(scope="module")
def log_probs(peer: GPT2LMHeadModel, greedy: list[list[int]]) -> list[list[float]]:
    """Hugging Face's log-probability of each greedy token."""
    found = []
    for prompt, tokens in zip(PROMPTS, greedy, strict=True):
        with torch.inference_mode():
            logits = peer(torch.tensor([[*prompt.encode(), *tokens]])).logits[0]
        rows = logits.log_softmax(-1)[len(prompt.encode()) - 1 : -1]
        found.append([float(row[token]) for row, token in zip(rows, tokens, strict=True)])
    return found


@pytest.fixture(scope="module")
def drawn(peer: GPT2LMHeadModel) -> list[list[int]]:
    found = [sampled(peer, prompt, sequence) for prompt in PROMPTS for sequence in range(2)]
    assert found[0] != found[1]
    return found


@pytest.fixture(scope="module")
def searched(peer: GPT2LMHeadModel) -> list[list[int]]:
    options = {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.7, "max_new_tokens": 40}
    return [written(row, prompt) for prompt in PROMPTS for row in peer.generate(ids(prompt), **options)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("backend", ["torch", "paddle", "mindspore"])
def test_the_tokens_are_those_of_hugging_face(
    backend: str,
    folder: Path,
    greedy: list[list[int]],
    log_probs: list[list[float]],
    drawn: list[list[int]],
    searched: list[list[int]],
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([str(folder), backend, PROMPTS, JOBS]),
        capture_output=True,
        text=True,
        timeout=580,
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    together, alone, draws, beams = json.loads(done.stdout.splitlines()[-1])
    assert [tokens for tokens, _ in together] == greedy
    assert [tokens for tokens, _ in alone] == greedy
    for (_, found), expected in zip(together, log_probs, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4)
    assert [tokens for tokens, _ in draws] == drawn
    assert [tokens for tokens, _ in beams] == searched
