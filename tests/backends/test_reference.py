"""The NumPy reference against itself: finite differences, causality, masks."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from gptbridge import reference
from gptbridge.testing import cases
from gptbridge_specs import ModelSpec

ACTIVATIONS = sorted(reference.ACTIVATIONS)


def tiny(activation: str = "gelu_tanh", *, tied: bool = True) -> ModelSpec:
    return cases.run_spec("cpu", {"activation": activation, "tie_word_embeddings": tied}).model


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_are_the_slope_of_the_loss(activation: str, tied: bool) -> None:
    model = tiny(activation, tied=tied)
    weights = {name: array.astype(np.float64) for name, array in cases.weights(model).items()}
    batch = cases.batch(model)
    _, gradients = reference.loss_and_gradients(model, weights, batch)
    assert set(gradients) == set(weights)
    stream = np.random.default_rng(11)
    for name, array in weights.items():
        direction = 1e-5 * stream.standard_normal(array.shape)
        ahead, _ = reference.loss_and_gradients(model, {**weights, name: array + direction}, batch)
        behind, _ = reference.loss_and_gradients(model, {**weights, name: array - direction}, batch)
        slope = float((gradients[name] * direction).sum())
        assert slope != 0
        assert (ahead - behind) / 2 == pytest.approx(slope, rel=1e-5, abs=1e-11), name


def test_exact_gelu_is_exact() -> None:
    x = np.array([-6.0, -1.5, -0.0, 1e-9, 0.7, 3.0])
    value, slope = reference.ACTIVATIONS["gelu_erf"](x)
    expected = [0.5 * n * math.erfc(-n / math.sqrt(2)) for n in x]
    np.testing.assert_allclose(value, expected, rtol=1e-9, atol=1e-18)
    np.testing.assert_allclose(slope[2], 0.5)


def test_a_token_changes_no_earlier_logits() -> None:
    model = tiny()
    weights, tokens = cases.weights(model), cases.batch(model).inputs[0].copy()
    before = reference.logits(model, weights, tokens)
    tokens[:, 6] = (tokens[:, 6] + 1) % model.vocab_size
    after = reference.logits(model, weights, tokens)
    np.testing.assert_array_equal(after[:, :6], before[:, :6])
    assert np.abs(after[:, 6:] - before[:, 6:]).min(axis=(0, 2)).min() > 0


def test_packed_records_are_as_they_are_alone() -> None:
    model = tiny()
    weights, batch = cases.weights(model), cases.batch(model)
    packed = cases.packed(batch)
    records = cases.records(packed)
    alone = [reference.loss_and_gradients(model, weights, lone) for _, _, lone in records]
    for (_, counting, _), (loss, _) in zip(records, alone, strict=True):
        assert reference.loss_and_gradients(model, weights, counting)[0] == pytest.approx(loss, abs=1e-12)
    _, found = reference.loss_and_gradients(
        model, weights, replace(packed, loss_mask=np.ones_like(packed.loss_mask), loss_tokens=1)
    )
    for name, gradient in found.items():
        parts = [
            len(lone.inputs[0, 0]) * each[name]
            for (_, _, lone), (_, each) in zip(records, alone, strict=True)
        ]
        np.testing.assert_allclose(gradient, sum(parts), atol=1e-10)


def test_masked_labels_do_not_count() -> None:
    model = tiny()
    weights, batch = cases.weights(model), cases.batch(model)
    labels = np.where(batch.loss_mask, batch.labels, 0)
    first = reference.loss_and_gradients(model, weights, batch)
    second = reference.loss_and_gradients(model, weights, replace(batch, labels=labels))
    assert first[0] == second[0]
    for name, gradient in first[1].items():
        np.testing.assert_array_equal(gradient, second[1][name])


def test_clipping_scales_to_the_limit() -> None:
    gradients = {"a": np.array([3.0, 0.0]), "b": np.array([[4.0]])}
    assert reference.gradient_norm(gradients) == 5
    assert reference.gradient_norm(reference.clip(gradients, 2.0)) == pytest.approx(2)
    for limit in (7.0, None):
        np.testing.assert_array_equal(reference.clip(gradients, limit)["b"], gradients["b"])
