"""Decoding rules: from the logits of one position to the next token, the same on every backend.

In transformers' order: PROCESSORS change the logits; to draw, softmax of logits / temperature, then CUTS
leave tokens out, then one draw. Ties at the k-th place are kept, and so is the first token that goes over
top-p's limit. Of what top-k left, transformers' top-p counts the shares anew, PaddleNLP's and
PaddleFleetX's as they were: it cuts less.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import RunFailed
from gptbridge_specs.generation import GenerationSpec

Scores = NDArray[np.floating[Any]]
Probabilities = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Past:
    """What the next token follows."""

    tokens: Sequence[int]  # prompt and continuation, also what the model sees no more
    new: int = 0  # how many of them are the continuation
    ends: tuple[int, ...] = ()  # tokens that end a text


def next_token(logits: Scores, spec: GenerationSpec, past: Past, *, sequence: int = 0) -> int:
    """Return the token that follows, from (V,) logits.

    A draw depends on (spec.seed, sequence, past.new) alone: not on the other rows of a batch, nor on
    the backend. The first of equally likely tokens wins a greedy choice.
    """
    scores = processed(finite(logits), spec, past)
    if spec.strategy == "greedy":
        return int(scores.argmax())
    cumulative = np.cumsum(probabilities(scores, spec))
    # Rounding may lift the product to the total, where no token is.
    limit = np.nextafter(cumulative[-1], 0.0)
    drawn = min(_uniform(spec.seed, sequence, past.new) * cumulative[-1], limit)
    return int(np.searchsorted(cumulative, drawn, side="right"))


def finite(logits: Scores) -> Scores:
    """Return `logits`; RunFailed where one is no number."""
    if not np.isfinite(logits).all():
        raise RunFailed(
            "the model's logits are not finite", hint="The checkpoint does not hold a usable model"
        )
    return logits


def log_softmax(logits: Scores) -> Scores:
    """Return the logarithm of each token's share."""
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))  # type: ignore[no-any-return]


def processed(scores: Scores, spec: GenerationSpec, past: Past) -> Scores:
    """Return (V,) logits, or a beam's log-probabilities, after PROCESSORS; -inf where no token may be."""
    for processor in PROCESSORS:
        scores = processor(scores, spec, past)
    if scores.max() == -np.inf:
        raise RunFailed(
            f"after {past.new} tokens no token is left to choose",
            hint="Lower generation.no_repeat_ngram or generation.min_new_tokens",
        )
    return scores


def _repetition_penalty(scores: Scores, spec: GenerationSpec, past: Past) -> Scores:
    """Divide what is above 0 and multiply what is below, for each token that was there."""
    if spec.repetition_penalty == 1:
        return scores
    there = _known(past.tokens, scores)
    changed = scores.copy()
    penalty = spec.repetition_penalty
    changed[there] = np.where(scores[there] < 0, scores[there] * penalty, scores[there] / penalty)
    return changed


def _no_repeat_ngram(scores: Scores, spec: GenerationSpec, past: Past) -> Scores:
    """Forbid what would end a run of `no_repeat_ngram` tokens that was there."""
    size = spec.no_repeat_ngram
    if not 0 < size <= len(past.tokens):
        return scores
    runs = np.lib.stride_tricks.sliding_window_view(np.asarray(past.tokens), size)
    begun = np.asarray(past.tokens[len(past.tokens) + 1 - size :])
    return _without(scores, runs[(runs[:, :-1] == begun).all(1), -1])


def _min_new_tokens(scores: Scores, spec: GenerationSpec, past: Past) -> Scores:
    """Forbid the end of the text before there are so many tokens."""
    return _without(scores, past.ends) if past.new < spec.min_new_tokens else scores


PROCESSORS: tuple[Callable[[Scores, GenerationSpec, Past], Scores], ...] = (
    _repetition_penalty,
    _no_repeat_ngram,
    _min_new_tokens,
)


def _without(scores: Scores, tokens: Sequence[int] | NDArray[np.int_]) -> Scores:
    changed = scores.copy()
    changed[_known(tokens, scores)] = -np.inf
    return changed


def _known(tokens: Sequence[int] | NDArray[np.int_], scores: Scores) -> NDArray[np.int_]:
    """Return those of the tokens that have a score."""
    array = np.asarray(tokens, np.int_)
    return array[array < scores.size]


def probabilities(logits: Scores, spec: GenerationSpec) -> Probabilities:
    """Return the weight of each token in the draw: 0 for what CUTS leave out."""
    scaled = logits.astype(np.float64) / spec.temperature
    shares: Probabilities = np.exp(scaled - scaled.max())
    shares /= shares.sum()
    for cut in CUTS:
        shares = cut(shares, spec)
    return shares


def _top_k(shares: Probabilities, spec: GenerationSpec) -> Probabilities:
    if not 0 < spec.top_k < shares.size:
        return shares
    threshold = np.partition(shares, -spec.top_k)[-spec.top_k]
    return np.where(shares < threshold, 0.0, shares)


def _top_p(shares: Probabilities, spec: GenerationSpec) -> Probabilities:
    if spec.top_p >= 1:
        return shares
    return np.where(_TOP_P[spec.top_p_rule](shares, spec.top_p), shares, 0.0)


def _transformers_top_p(shares: Probabilities, p: float) -> NDArray[np.bool_]:
    """Keep a token unless it and all that are less likely hold at most 1 - p of the shares."""
    order = np.argsort(shares, kind="stable")
    inside = np.zeros(shares.size, np.bool_)
    inside[order] = np.cumsum(shares[order]) / shares.sum() > 1.0 - p
    inside[order[-1]] = True
    return inside


def _paddlenlp_top_p(shares: Probabilities, p: float) -> NDArray[np.bool_]:
    """Keep a token unless those that are likelier hold more than p, of all that there was before top-k."""
    order = np.argsort(-shares, kind="stable")
    inside = np.zeros(shares.size, np.bool_)
    inside[order] = np.cumsum(shares[order]) - shares[order] <= p
    return inside


_TOP_P = {"transformers": _transformers_top_p, "paddlenlp": _paddlenlp_top_p}


def _min_p(shares: Probabilities, spec: GenerationSpec) -> Probabilities:
    return np.where(shares < spec.min_p * shares.max(), 0.0, shares)


CUTS: tuple[Callable[[Probabilities, GenerationSpec], Probabilities], ...] = (_top_k, _top_p, _min_p)


def _uniform(seed: int, sequence: int, position: int) -> float:
    """Return a number in [0, 1) with 53 random bits, keyed by its arguments."""
    digest = hashlib.blake2b(f"draw:{seed}:{sequence}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
