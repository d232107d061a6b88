"""What is asked of the engine: one prompt, how it is continued, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from gptbridge.rules.beam import BeamSearch
from gptbridge.rules.decoding import Past, log_softmax, next_token
from gptbridge_specs.generation import GenerationSpec

Reason = Literal["end_of_text", "stop", "length"]
Logits = NDArray[np.float32]
OnToken = Callable[[int, int, float], None]  # which of the request's texts, the token and its log-probability


def nothing(sequence: int, token: int, log_prob: float) -> None:
    """Hear of no token."""


@dataclass(frozen=True, slots=True)
class Written:
    """One continuation in tokens, without the end-of-text or stop token that ended it."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]  # the model's, before temperature and all else
    reason: Reason
    score: float | None = None  # beam search: the sum of log-probabilities by length


@dataclass(frozen=True, slots=True)
class Ending:
    """What ends a continuation. `stopped` tells whether the text of tokens has come to a stop string."""

    limit: int
    end_of_text: int | None = None
    stop_tokens: tuple[int, ...] = ()
    stopped: Callable[[Sequence[int]], bool] = lambda tokens: False

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens that end a text."""
        return tuple({*self.stop_tokens, *(() if self.end_of_text is None else (self.end_of_text,))})

    def reason(self, tokens: Sequence[int]) -> Reason | None:
        """Return why a continuation ends with its last token; None where it goes on."""
        if tokens[-1] == self.end_of_text:
            return "end_of_text"
        if tokens[-1] in self.stop_tokens or self.stopped(tokens):
            return "stop"
        return "length" if len(tokens) >= self.limit else None

    def written(
        self, tokens: Sequence[int], log_probs: Sequence[float], score: float | None = None
    ) -> Written | None:
        """Return the continuation if it has ended."""
        reason = self.reason(tokens)
        if reason is None:
            return None
        kept = len(tokens) - (tokens[-1] in self.tokens)
        return Written(tuple(tokens[:kept]), tuple(log_probs[:kept]), reason, score)


class Request(Protocol):
    """One prompt that is being continued, in rows of its own."""

    prompt: tuple[int, ...]
    width: int  # rows that it needs at the most

    def advance(self, logits: Logits) -> list[tuple[int, int]]:
        """Take (K, V) logits of its K rows; return what each row that goes on was, and its next token.

        The first call has the prompt's row alone; no rows in the answer: the request has ended.
        """

    def results(self) -> list[Written]:
        """Return the continuations of a request that has ended."""


class Continuing:
    """Greedy and sampling: each row is a text, and goes on with one token."""

    def __init__(
        self, prompt: Sequence[int], spec: GenerationSpec, ending: Ending, on_token: OnToken = nothing
    ) -> None:
        self.prompt = tuple(prompt)
        self.width = spec.num_return_sequences
        self._spec, self._ending, self._on_token = spec, ending, on_token
        self._running = range(self.width)  # the number of each row's text
        self._tokens: list[list[int]] = [[] for _ in self._running]
        self._log_probs: list[list[float]] = [[] for _ in self._running]
        self._written: dict[int, Written] = {}

    def advance(self, logits: Logits) -> list[tuple[int, int]]:
        """Choose the next token of each text."""
        first = len(logits) < len(self._running)  # of many texts, from the one row of the prompt
        rows = [(0 if first else place, number) for place, number in enumerate(self._running)]
        following = [(row, number, self._choose(number, logits[row])) for row, number in rows]
        following = [one for one in following if one[1] not in self._written]
        self._running = [number for _, number, _ in following]  # type: ignore[assignment]
        return [(row, token) for row, _, token in following]

    def results(self) -> list[Written]:
        """Return the texts in their order."""
        return [self._written[number] for number in sorted(self._written)]

    def _choose(self, number: int, logits: Logits) -> int:
        tokens, log_probs = self._tokens[number], self._log_probs[number]
        past = Past((*self.prompt, *tokens), len(tokens), self._ending.tokens)
        token = next_token(logits, self._spec, past, sequence=number)
        tokens.append(token)
        log_probs.append(float(log_softmax(logits)[token]))
        if written := self._ending.written(tokens, log_probs):
            self._written[number] = written
        if token not in self._ending.tokens:
            self._on_token(number, token, log_probs[-1])
        return token


class Searching:
    """Beam search: rows are the beams, and nothing is certain before the end."""

    def __init__(self, prompt: Sequence[int], spec: GenerationSpec, ending: Ending) -> None:
        self.prompt = tuple(prompt)
        self.width = spec.beams
        self._ending = ending
        self._search = BeamSearch(
            self.prompt, spec, ending.tokens, lambda tokens: ending.reason(tokens) is not None
        )

    def advance(self, logits: Logits) -> list[tuple[int, int]]:
        """Follow the best beams."""
        return self._search.advance(logits)

    def results(self) -> list[Written]:
        """Return the best texts, best first."""
        found = [
            self._ending.written(beam.tokens, beam.log_probs, beam.score) for beam in self._search.best()
        ]
        return [written for written in found if written is not None]


def request(
    prompt: Sequence[int], spec: GenerationSpec, ending: Ending, on_token: OnToken = nothing
) -> Request:
    """Return the request that continues `prompt` as `spec` says; a beam search tells of no token."""
    if spec.strategy == "beam":
        return Searching(prompt, spec, ending)
    return Continuing(prompt, spec, ending, on_token)
