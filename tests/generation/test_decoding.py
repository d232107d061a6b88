"""The decoding rules, each against its definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from gptbridge.errors import RunFailed
from gptbridge.rules.decoding import Past, next_token, probabilities
from gptbridge_specs.generation import GenerationSpec

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=20).map(
    lambda values: np.array(values, np.float32)
)
ROUND = np.log(np.array([0.4, 0.3, 0.2, 0.1]))


def sampling(**fields: float | str) -> GenerationSpec:
    return GenerationSpec.model_validate({"strategy": "sample", **fields})


def test_greedy_takes_the_first_of_the_likeliest() -> None:
    spec = GenerationSpec()
    assert next_token(np.array([0.0, 3.0, 3.0]), spec, Past(())) == 1


def test_top_k_keeps_ties() -> None:
    logits = np.array([1.0, 2.0, 2.0, 3.0])
    assert np.flatnonzero(probabilities(logits, sampling(top_k=2))).tolist() == [1, 2, 3]
    assert np.flatnonzero(probabilities(logits, sampling(top_k=1))).tolist() == [3]
    assert np.count_nonzero(probabilities(logits, sampling(top_k=0))) == 4
    assert np.count_nonzero(probabilities(logits, sampling(top_k=99))) == 4


@pytest.mark.parametrize(
    ("p", "kept"), [(0.01, 1), (0.39, 1), (0.41, 2), (0.69, 2), (0.71, 3), (0.95, 4), (1.0, 4)]
)
def test_top_p_keeps_the_first_over_the_limit(p: float, kept: int) -> None:
    assert np.flatnonzero(probabilities(ROUND, sampling(top_p=p))).tolist() == list(range(kept))


def test_top_p_counts_shares_after_top_k_by_either_rule() -> None:
    """0.4 + 0.3 are left of 1.0: 0.57 + 0.43 counted anew, or not to be cut by 0.55 as they were."""
    shares = {"top_k": 2, "top_p": 0.55}
    assert np.count_nonzero(probabilities(ROUND, sampling(**shares))) == 1
    assert np.count_nonzero(probabilities(ROUND, sampling(**shares, top_p_rule="paddlenlp"))) == 2
    for rule in ("transformers", "paddlenlp"):
        assert np.count_nonzero(probabilities(ROUND, sampling(top_k=2, top_p=0.35, top_p_rule=rule))) == 1


@given(
    seed=st.integers(0, 2**31),
    top_k=st.integers(0, 60),
    top_p=st.floats(0.05, 0.99),
    temperature=st.floats(0.2, 3),
)
def test_what_is_kept_is_what_transformers_keeps(
    seed: int, top_k: int, top_p: float, temperature: float
) -> None:
    logits = np.random.default_rng(seed).normal(0, 3, 50)
    scores = torch.from_numpy(logits)[None]
    scores = TemperatureLogitsWarper(temperature)(None, scores)
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    theirs = TopPLogitsWarper(top_p)(None, scores).softmax(-1)[0].numpy()
    ours = probabilities(logits, sampling(top_k=top_k, top_p=top_p, temperature=temperature))
    np.testing.assert_allclose(ours / ours.sum(), theirs, atol=1e-12)


def test_temperature_divides_the_logits() -> None:
    cold = probabilities(ROUND, sampling(temperature=0.5))
    expected = np.array([0.16, 0.09, 0.04, 0.01]) / 0.3
    np.testing.assert_allclose(cold, expected)


@given(logits=LOGITS, top_k=st.integers(0, 25), top_p=st.floats(0.01, 1), row=st.integers(0, 5))
def test_a_draw_is_among_what_is_kept_and_repeats(
    logits: NDArray[np.float32], top_k: int, top_p: float, row: int
) -> None:
    spec = sampling(top_k=top_k, top_p=top_p)
    token = next_token(logits, spec, Past((), 3), sequence=row)
    assert probabilities(logits, spec)[token] > 0
    assert token == next_token(logits, spec, Past((), 3), sequence=row)


def test_draws_follow_the_shares() -> None:
    spec = sampling(seed=5)
    drawn = [next_token(ROUND, spec, Past((), p), sequence=row) for row in range(20) for p in range(500)]
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    np.testing.assert_allclose(shares, [0.4, 0.3, 0.2, 0.1], atol=0.015)


def test_seed_row_and_position_each_change_the_draws() -> None:
    def draws(seed: int, row: int, first: int) -> list[int]:
        return [next_token(ROUND, sampling(seed=seed), Past((), first + p), sequence=row) for p in range(50)]

    base = draws(1, 0, 0)
    assert base != draws(2, 0, 0)
    assert base != draws(1, 1, 0)
    assert base != draws(1, 0, 1)


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(RunFailed):
        next_token(np.array([0.0, np.nan]), GenerationSpec(), Past(()))
