"""Decoding rules: from the logits of one position to the next token, the same on every backend.

In order: softmax of logits / temperature, then top-k by threshold, then top-p, then one draw. Ties at
the k-th place are kept, and so is the first token that goes over top-p's limit. Of what top-k left,
transformers' top-p counts the shares anew, PaddleNLP's and PaddleFleetX's as they were: it cuts less.
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
    kept = _top_k(shares, spec.top_k)
    return kept if spec.top_p >= 1 else np.where(_TOP_P[spec.top_p_rule](kept, spec.top_p), kept, 0.0)


def _top_k(shares: Probabilities, k: int) -> Probabilities:
    if not 0 < k < shares.size:
        return shares
    threshold = np.partition(shares, -k)[-k]
    return np.where(shares < threshold, 0.0, shares)


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


def _uniform(seed: int, row: int, position: int) -> float:
    """Return a number in [0, 1) with 53 random bits, keyed by its arguments."""
    digest = hashlib.blake2b(f"draw:{seed}:{row}:{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) / 2**53
