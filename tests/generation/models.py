"""Small models with lively weights: 40 greedy tokens hold many different ids, so that equal ids say much."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge import reference
from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.generation.engine import Engine
from gptbridge.generation.requests import Ending, OnToken, Written, nothing, request
from gptbridge.generation.texts import Texts
from gptbridge.rules.rows import CachedDecoder, Rows
from gptbridge.testing import cases
from gptbridge_specs import ModelSpec
from gptbridge_specs.generation import GenerationSpec

BYTES = load_tokenizer("byte")
MODEL = ModelSpec(
    vocab_size=257, hidden_size=24, num_layers=2, num_attention_heads=3, max_position_embeddings=160
)


def weights(seed: int = 5, model: ModelSpec = MODEL) -> dict[str, NDArray[np.float32]]:
    """Return weights of a model that writes many different tokens."""
    return {
        name: (array * 4).astype(np.float32) if "wpe" in name or "wte" in name else array
        for name, array in cases.weights(model, seed).items()
    }


class _Cache:
    """The tokens of each row, for a decoder that has no cache."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows = Rows(rows, capacity)
        self.tokens: list[list[int]] = [[] for _ in range(rows)]

    def place(self, lengths: NDArray[np.int32], width: int) -> None:
        self.lengths = lengths
        self.rows.place(lengths, width)

    def keep(self, rows: NDArray[np.int32]) -> None:
        self.rows.keep(rows)
        self.tokens = [list(self.tokens[row]) if row >= 0 else [] for row in rows]


class Table:
    """A language model whose logits hang on its last tokens alone, computed at once: fast, and exact."""

    def __init__(self, vocab_size: int = 257, seed: int = 0) -> None:
        self._vocab_size, self._seed = vocab_size, seed
        self.widest = 0  # rows that were fed at once

    def logits_after(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        key = [self._seed, *tokens[-3:], len(tokens)]
        return np.random.default_rng(key).normal(0, 2, self._vocab_size).astype(np.float32)

    def decoder(self, rows: int, capacity: int) -> CachedDecoder[_Cache]:
        def decode(tokens: NDArray[np.int32], cache: _Cache) -> NDArray[np.float32]:
            self.widest = max(self.widest, len(cache.tokens))
            growing = np.flatnonzero(cache.lengths)
            for place, row in zip(growing, tokens, strict=True):
                cache.tokens[place].extend(int(token) for token in row[: cache.lengths[place]])
            return np.stack([self.logits_after(cache.tokens[place]) for place in growing])

        return CachedDecoder(decode, _Cache(rows, capacity))


def reference_logits(tokens: Sequence[int], model: ModelSpec, arrays: Any) -> NDArray[np.float64]:
    """Return the logits after the last of `tokens`."""
    return np.asarray(reference.logits(model, arrays, np.array([tokens], np.int32))[0, -1])


def ask(
    prompt: Sequence[int], spec: GenerationSpec, end_of_text: int | None = 256, on_token: OnToken = nothing
) -> Any:
    """Return the request for a prompt in bytes."""
    texts = Texts(BYTES, spec.stop)
    return request(
        prompt, spec, Ending(spec.max_new_tokens, end_of_text, spec.stop_tokens, texts.stopped), on_token
    )


def through_engine(model: Any, asked: Sequence[Any], rows: int = 8, window: int = 160) -> list[list[Written]]:
    """Return what came of each request, all in one engine."""
    engine = Engine(model, rows=rows, window=window, vocab_size=257)
    for each in asked:
        engine.submit(each)
    while engine.busy:
        engine.step()
    return [each.results() for each in asked]
