"""llama.cpp reads the GGUF file: the same greedy tokens and log-probabilities as the checkpoint's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge import export, reference
from gptbridge_specs import ModelSpec
from tests.exporting.sources import PLAIN, blocks_swapped, canonical, write_source

# The server of the wheel aborts its process where it fails.
SCRIPT = """
import json, sys
import xllamacpp as llama
asked = json.loads(sys.argv[1])
params = llama.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = asked["file"], asked["places"], 1, False
params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
params.verbosity = -1
server = llama.Server(params)
answer = server.handle_completions({
    "prompt": asked["prompt"], "max_tokens": asked["new"], "temperature": 0, "logprobs": 1,
    "logit_bias": [[token, False] for token in asked["banned"]],
})
steps = answer["choices"][0]["logprobs"]["content"]
print(json.dumps([[step["id"], step["logprob"]] for step in steps]))
"""
PROMPT, NEW = [100, 101, 102, 32], 40
# Bytes that are no text of their own are left out of the answer; token 11 would end a text without an end.
BANNED = [*range(32), *range(127, 257)]


def by_llama(file: Path) -> list[tuple[int, float]]:
    asked = {"file": str(file), "places": 48, "prompt": PROMPT, "new": NEW, "banned": BANNED}
    command = [sys.executable, "-c", SCRIPT, json.dumps(asked)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    return [(token, probability) for token, probability in json.loads(run.stdout.splitlines()[-1])]


def beside(found: list[tuple[int, float]], model: ModelSpec, weights: dict[str, Any]) -> tuple[float, float]:
    """Return how far its log-probabilities are from the reference's after the same tokens, and how much
    likelier the likeliest tokens are than those that it took."""
    tokens = np.array([*PROMPT, *(token for token, _ in found)], np.int32)
    logits = reference.logits(model, weights, tokens[None, :-1])[0, len(PROMPT) - 1 :]
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    taken = log_probs[np.arange(NEW), tokens[len(PROMPT) :]]
    log_probs[:, BANNED] = -np.inf
    apart = np.abs(taken - [probability for _, probability in found])
    return float(apart.max()), float((log_probs.max(-1) - taken).max())


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the wheel of llama.cpp is for Linux")


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 5e-3), ("float16", 1e-2), ("q8_0", 0.2)])
def test_llama_writes_the_same_tokens(dtype: str, bound: float, tmp_path: Path) -> None:
    """Its GELU goes through a table of half precision; with q8_0 it rounds what the weights are multiplied
    with too, and takes the other of two tokens that are as likely within that."""
    model = PLAIN.model_copy(update={"hidden_size": 96})
    notes = export(
        write_source(tmp_path / "in", model), tmp_path / "out", format="gguf", dtype=dtype, verify=False
    ).notes
    assert not any("multiple of 32" in note for note in notes)
    found = by_llama(tmp_path / "out" / "model.gguf")
    assert len({token for token, _ in found}) > 8
    apart, likelier = beside(found, model, canonical(model))
    assert (apart < bound, likelier < (bound if dtype == "q8_0" else 1e-9)) == (True, True), (apart, likelier)
    apart, likelier = beside(found, model, blocks_swapped(canonical(model)))
    assert (apart > 1, likelier > 1) == (True, True), (apart, likelier)


def test_llama_reads_an_untied_odd_model(tmp_path: Path) -> None:
    """Its head, rows of the vocabulary that are no token, heads of 13, no width a multiple of 32."""
    odd = {"vocab_size": 261, "hidden_size": 39, "ffn_hidden_size": 50, "tie_word_embeddings": False}
    model = PLAIN.model_copy(update=odd)
    source = write_source(tmp_path / "in", model)
    notes = export(source, tmp_path / "out", format="gguf", dtype="q8_0", verify=False).notes
    assert "10 of 10 matrices are in float16: q8_0 has rows of a multiple of 32 numbers" in notes
    apart, likelier = beside(by_llama(tmp_path / "out" / "model.gguf"), model, canonical(model))
    assert (apart < 2e-2, likelier) == (True, 0), (apart, likelier)
