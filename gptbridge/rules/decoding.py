"""Decoding rules: from the logits of one position to the next token, the same on every backend.

The order is PaddleNLP's and PaddleFleetX's: softmax of logits / temperature, then top-k by threshold,
then top-p, then one draw. Ties at the k-th place are kept. Top-p counts the shares that top-k left as
they are, not renormalised, and keeps the first token that goes over the limit.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import RunFailed
from gptbridge_specs.run import GenerationSpec

Probabilities = NDArray[np.float64]


def next_token(logits: NDArray[np.floating[Any]], spec: GenerationSpec, *, row: int, position: int) -> int:
    """Return the token that follows, from (V,) logits.

    A draw depends on (spec.seed, row, position) alone: not on the other rows of a batch, nor on
    the backend. The first of equally likely tokens wins a greedy choice.
    """
    if not np.isfinite(logits).all():
        raise RunFailed(
            "the model's logits are not finite", hint="The checkpoint does not hold a usable model"
        )
    if spec.strategy == "greedy":
        return int(logits.argmax())
    cumulative = np.cumsum(probabilities(logits, spec))
    # Rounding may lift the product to the total, where no token is.
    limit = np.nextafter(cumulative[-1], 0.0)
    drawn = min(_uniform(spec.seed, row, position) * cumulative[-1], limit)
    return int(np.searchsorted(cumulative, drawn, side="right"))


def probabilities(logits: NDArray[np.floating[Any]], spec: GenerationSpec) -> Probabilities:
    """Return the weight of each token in the draw: 0 for what top-k and top-p leave out."""
    scaled = logits.astype(np.float64) / spec.temperature
    shares = np.exp(scaled - scaled.max())
    shares /= shares.sum()
    return _top_p(_top_k(shares, spec.top_k), spec.top_p)


def _top_k(shares: Probabilities, k: int) -> Probabilities:
    if not 0 < k < shares.size:
        return shares
    threshold = np.partition(shares, -k)[-k]
    return np.where(shares < threshold, 0.0, shares)


def _top_p(shares: Probabilities, p: float) -> Probabilities:
    if p >= 1:
        return shares
    order = np.argsort(-shares, kind="stable")
    before = np.cumsum(shares[order]) - shares[order]
    kept = np.zeros_like(shares)
    inside = order[before <= p]
    kept[inside] = shares[inside]
    return kept


def _uniform(seed: int, row: int, position: int) -> float:
    """Return a number in [0, 1) with 53 random bits, keyed by its arguments."""
    digest = hashlib.blake2b(f"draw:{seed}:{row}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
