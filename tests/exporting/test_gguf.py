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


def by_reference(model: ModelSpec, weights: dict[str, Any]) -> list[tuple[int, float]]:
    tokens, steps = list(PROMPT), []
    for _ in range(NEW):
        logits = reference.logits(model, weights, np.array([tokens], np.int32))[0, -1]
        log_probs = logits - np.log(np.exp(logits).sum())
        logits[BANNED] = -np.inf
        tokens.append(int(logits.argmax()))
        steps.append((tokens[-1], float(log_probs[tokens[-1]])))
    return steps


def compared(found: list[tuple[int, float]], expected: list[tuple[int, float]]) -> tuple[float, float]:
    """Return the share of equal tokens, and how far the log-probabilities of the first ten are apart."""
    equal = [a == b for (a, _), (b, _) in zip(found, expected, strict=True)]
    return sum(equal) / len(equal), max(
        abs(a - b) for (_, a), (_, b) in zip(found[:10], expected[:10], strict=True)
    )


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the wheel of llama.cpp is for Linux")


def test_llama_writes_the_same_tokens(tmp_path: Path) -> None:
    source = write_source(tmp_path / "in", PLAIN)
    expected = by_reference(PLAIN, canonical(PLAIN))
    assert len({token for token, _ in expected}) > 8
    export(source, tmp_path / "out", format="gguf", verify=False)
    equal, apart = compared(by_llama(tmp_path / "out" / "model.gguf"), expected)
    assert (equal, apart < 5e-3) == (1, True)  # its GELU goes through a table of half precision
    equal, apart = compared(expected, by_reference(PLAIN, blocks_swapped(canonical(PLAIN))))
    assert (equal < 0.5, apart > 0.2) == (True, True)


def test_llama_reads_an_untied_odd_model(tmp_path: Path) -> None:
    """Its head, rows of the vocabulary that are no token, heads of 13, no width a multiple of 32."""
    odd = {"vocab_size": 261, "hidden_size": 39, "ffn_hidden_size": 50, "tie_word_embeddings": False}
    model = PLAIN.model_copy(update=odd)
    source = write_source(tmp_path / "in", model)
    export(source, tmp_path / "out", format="gguf", dtype="q8_0", verify=False)
    equal, apart = compared(by_llama(tmp_path / "out" / "model.gguf"), by_reference(model, canonical(model)))
    assert (equal, apart < 2e-2) == (1, True)
