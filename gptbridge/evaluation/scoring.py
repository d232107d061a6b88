"""The losses of many short and long rows: sorted by length, so that little is computed on padding.

The product with the vocabulary is made at the positions that count and at no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BadInput
from gptbridge.evaluation.encoding import Encoder, Tokens
from gptbridge.evaluation.result import Measures
from gptbridge.session import LanguageModel

LOGITS_AT_ONCE = 2**23  # numbers, where they come to the host

Found = tuple[NDArray[np.float64], NDArray[np.bool_]]  # losses (B, K) and hits (B, K)
Progress = Callable[[int, int], None]  # rows done, rows in all


@dataclass(frozen=True, slots=True)
class Row:
    """Inputs (T,) of which the positions `at` (K,) are to predict `labels` (K,)."""

    inputs: Tokens
    labels: Tokens
    at: Tokens


@dataclass(frozen=True, slots=True)
class Scored:
    """Each label's negative log likelihood, and whether it is the likeliest, where that is asked for."""

    losses: NDArray[np.float64]
    hits: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Job:
    """Rows to score, with or without hits, and what follows from their scores, in the same order."""

    rows: Sequence[Row]
    measure: Callable[[Sequence[Scored]], Measures]
    hits: bool = False


@dataclass(frozen=True, slots=True)
class Scorer:
    """Scores rows with a model of `vocab_size`, at most `tokens` at a time where a row is not longer."""

    model: LanguageModel
    tokens: int
    vocab_size: int
    progress: Progress = lambda done, rows: None

    def score(self, rows: Sequence[Row], *, hits: bool) -> list[Scored]:
        """Return what became of each row; a row without labels has no losses and no hit that is wrong."""
        score = self._by_logits if hits else self._by_losses
        found = [Scored(np.zeros(0), np.ones(0, np.bool_))] * len(rows)
        for batch, arrays in self._batches(rows):
            for number, losses, right in zip(batch, *score(*arrays), strict=True):
                width = len(rows[number].labels)
                found[number] = Scored(losses[:width], right[:width])
        return found

    def _batches(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], list[Tokens]]]:
        """Yield numbers of rows, and their inputs (B, T), labels and positions (B, K), padded with zeros."""

        def width(number: int) -> int:
            return len(rows[number].labels).bit_length()

        scored = [number for number, row in enumerate(rows) if len(row.labels)]
        order = sorted(scored, key=lambda number: (width(number), len(rows[number].inputs)), reverse=True)
        done = len(rows) - len(scored)
        for _, group in groupby(order, width):
            numbers = list(group)
            while numbers:
                count = max(1, self.tokens // len(rows[numbers[0]].inputs))
                batch, numbers = numbers[:count], numbers[count:]
                parts = ([rows[n].inputs, rows[n].labels, rows[n].at] for n in batch)
                yield batch, [_padded(arrays) for arrays in zip(*parts, strict=True)]
                done += len(batch)
                self.progress(done, len(rows))

    def _by_losses(self, inputs: Tokens, labels: Tokens, at: Tokens) -> Found:
        losses = self.model.token_losses(inputs, labels, at).astype(np.float64)
        return losses, np.zeros(losses.shape, np.bool_)

    def _by_logits(self, inputs: Tokens, labels: Tokens, at: Tokens) -> Found:
        """Return the (B, K) losses and hits, by a few columns of logits at a time."""
        columns = max(1, LOGITS_AT_ONCE // (len(inputs) * self.vocab_size))
        losses, hits = np.zeros(labels.shape), np.zeros(labels.shape, np.bool_)
        for start in range(0, labels.shape[1], columns):
            part = slice(start, start + columns)
            logits = self.model.logits(inputs, at[:, part])
            hits[:, part] = logits.argmax(-1) == labels[:, part]
            lead = logits - logits.max(-1, keepdims=True)
            wanted = np.take_along_axis(lead, labels[:, part, None], 2)[..., 0]
            losses[:, part] = np.log(np.exp(lead).sum(-1, dtype=np.float64)) - wanted
        return losses, hits


def continuation(context: Tokens, target: Tokens, window: int, encoder: Encoder, where: str) -> Row:
    """Return a row that predicts all of `target` after the last tokens of `context` that the window holds.

    An empty context is an end-of-text token. BadInput for a target that is longer than the window.
    """
    if not len(target):
        raise BadInput("there is nothing to predict", where=where)
    if len(target) > window:
        raise BadInput(f"{len(target)} tokens to predict", where=where, allowed=f"up to {window}, the window")
    if not len(context):
        context = np.array([encoder.end_of_text("stands before what has no context")], np.int32)
    whole = np.concatenate([context, target])[-(window + 1) :]
    first = len(whole) - len(target) - 1
    return Row(whole[:-1], target, np.arange(first, len(whole) - 1, dtype=np.int32))


def _padded(arrays: Sequence[Tokens]) -> Tokens:
    """Return the arrays as rows, with zeros after them."""
    table = np.zeros((len(arrays), max(map(len, arrays))), np.int32)
    for row, array in zip(table, arrays, strict=True):
        row[: len(array)] = array
    return table


def target_tokens(rows: Sequence[Row]) -> int:
    """Return how many labels the rows have."""
    return sum(len(row.labels) for row in rows)
