"""Beam search as transformers defines it, in groups that shun each other's tokens (Vijayakumar et al., 2016).

Each group is a beam search of its own: one group is transformers' `generate`. At each place the groups go
in turn, and a token that beams of earlier groups chose there costs `diversity_penalty` for each of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from gptbridge.rules.decoding import Past, Scores, finite, log_softmax, processed
from gptbridge_specs.generation import GenerationSpec

Ends = Callable[[Sequence[int]], bool]  # whether a continuation ends with its last token


@dataclass(frozen=True, slots=True)
class Beam:
    """A continuation that is followed, or was followed to its end."""

    tokens: tuple[int, ...] = ()
    log_probs: tuple[float, ...] = ()  # the model's, of each token
    total: float = 0.0  # of the log-probabilities that the processors left
    score: float = 0.0  # of an ended one: total / length to the power of the length penalty


@dataclass
class _Group:
    size: int
    spec: GenerationSpec
    running: list[Beam] = field(default_factory=lambda: [Beam()])
    ended: list[Beam] = field(default_factory=list)  # best first

    def go_on(self, candidates: Sequence[Beam], ends: Ends) -> list[int]:
        """Follow the best of `candidates`, which come best first; return the places of those that run on."""
        hits = [ends(beam.tokens) for beam in candidates]
        length = len(candidates[0].tokens) ** self.spec.length_penalty
        new = [
            replace(beam, score=beam.total / length)
            for beam, hit in zip(candidates[: self.size], hits, strict=False)
            if hit
        ]
        self.ended = sorted([*self.ended, *new], key=lambda beam: -beam.score)[: self.size]
        kept = [place for place, hit in enumerate(hits) if not hit][: self.size]
        if len(self.ended) == self.size and kept:
            hopeless = candidates[kept[0]].total / length <= self.ended[-1].score
            kept = [] if self.spec.early_stopping or hopeless else kept
        self.running = [candidates[place] for place in kept]
        return kept


class BeamSearch:
    """The beams of one prompt: `advance` takes the logits of their rows, in order, and says what follows."""

    def __init__(self, prompt: Sequence[int], spec: GenerationSpec, end_tokens: tuple[int, ...], ends: Ends):
        self._prompt, self._spec, self._end_tokens, self._ends = tuple(prompt), spec, end_tokens, ends
        self._groups = [_Group(spec.beams // spec.beam_groups, spec) for _ in range(spec.beam_groups)]

    def advance(self, logits: Scores) -> list[tuple[int, int]]:
        """Return the row (of the last call's answer; at first of the prompt) and token of each next row."""
        model = log_softmax(finite(logits).astype(np.float64))
        chosen = np.zeros(model.shape[-1])
        rows: list[tuple[int, int]] = []
        start = 0
        for group in self._groups:
            if not group.running:
                continue
            here = model[start : start + len(group.running)]
            first = start
            start += len(group.running) if group.running[0].tokens else 0  # all begin with the prompt's row
            candidates = self._candidates(group, here, here - self._spec.diversity_penalty * chosen)
            for place in group.go_on([beam for _, beam in candidates], self._ends):
                row, beam = candidates[place]
                rows.append((first + row, beam.tokens[-1]))
            tokens = [beam.tokens[-1] for _, beam in candidates if beam.tokens[-1] not in self._end_tokens]
            np.add.at(chosen, tokens[: group.size], 1)
        return rows

    def best(self) -> list[Beam]:
        """Return the ended texts with the best scores, `num_return_sequences` at the most."""
        ended = [beam for group in self._groups for beam in group.ended]
        return sorted(ended, key=lambda beam: -beam.score)[: self._spec.num_return_sequences]

    def _candidates(
        self, group: _Group, model: NDArray[np.float64], scores: NDArray[np.float64]
    ) -> list[tuple[int, Beam]]:
        """Return the likeliest longer beams, best first, each with the place of the one that it continues.

        So many that even if all ends of texts are among them, enough are left to run on.
        """
        totals = np.stack(
            [
                beam.total + processed(row, self._spec, self._past(beam))
                for beam, row in zip(group.running, scores, strict=True)
            ]
        )
        count = min(totals.size, group.size * max(2, 1 + len(self._end_tokens)))
        best = np.argpartition(-totals, count - 1, axis=None)[:count]
        best = best[np.lexsort((best, -totals.ravel()[best]))]
        found = []
        for row, token in zip(*np.unravel_index(best, totals.shape), strict=True):
            if totals[row, token] == -np.inf:
                break
            beam = group.running[row]
            tokens, log_probs = (*beam.tokens, int(token)), (*beam.log_probs, float(model[row, token]))
            found.append((int(row), Beam(tokens, log_probs, float(totals[row, token]))))
        return found

    def _past(self, beam: Beam) -> Past:
        return Past(self._prompt + beam.tokens, len(beam.tokens), self._end_tokens)
