"""The table of the architecture: what is read from it, and that cutting by it changes no result."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptbridge import reference
from gptbridge.rules.initial import initial_value
from gptbridge.testing import cases
from gptbridge.weights.architecture import (
    LORA_TARGETS,
    count_parameters,
    flops_per_token,
    parameters,
    shapes,
    sizes,
    tensor_slice,
    weight_axes,
    weight_decay,
)
from gptbridge_specs import ModelSpec, load_model
from gptbridge_specs.presets import preset_names
from gptbridge_specs.run import LoraSpec, OptimizerSpec, TaskSpec

PRESETS = preset_names("models")
Arrays = dict[str, NDArray[np.float32]]


def model_of(**fields: Any) -> ModelSpec:
    """Six heads of 4, 30 feed-forward columns, 37 rows: no two sizes alike."""
    own = {"hidden_size": 24, "num_attention_heads": 6, "ffn_hidden_size": 30, "num_layers": 2}
    return cases.run_spec("cpu", {**own, **fields}).model


def piece_of(model: ModelSpec, weights: Mapping[str, NDArray[Any]], rank: int, degree: int) -> Arrays:
    """What tensor rank `rank` of `degree` holds of each weight, by the table."""
    whole = sizes(model)
    piece: Arrays = {}
    for p in parameters(model):
        box = tensor_slice(p.axes, whole, rank, degree)
        chosen = tuple(slice(*box[letter]) for letter in p.axes.letters)
        held = {letter: stop - start for letter, (start, stop) in box.items()}
        piece[p.name] = p.axes.spread(weights[p.name], whole)[chosen].reshape(p.axes.shape(held))
    return piece


def cut_when_fused(model: ModelSpec, weights: Arrays, rank: int, degree: int) -> Arrays:
    """The mistake: q, k and v as one matrix whose columns are cut, all shapes as they should be."""
    piece = piece_of(model, weights, rank, degree)
    for layer in range(model.num_layers):
        for kind in ("weight", "bias"):
            names = [f"h.{layer}.attn.{part}.{kind}" for part in "qkv"]
            fused = np.concatenate([weights[name] for name in names], -1)
            columns = np.array_split(fused, degree, -1)[rank]
            piece |= dict(zip(names, np.split(columns, 3, -1), strict=True))
    return piece


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("degree", [2, 3, 4, 6])
def test_pieces_run_apart_and_summed_are_the_model(degree: int, tied: bool) -> None:
    """Heads, feed-forward columns and rows of the vocabulary cut evenly or not, by what the table says."""
    model = model_of(tie_word_embeddings=tied)
    weights, tokens = cases.weights(model), cases.batch(model).inputs[0]
    expected = reference.logits(model, weights, tokens)
    ranks = [piece_of(model, weights, rank, degree) for rank in range(degree)]
    cut = {"attn.q.weight", "attn.k.weight", "attn.v.weight", "attn.c_proj.weight", "mlp.c_fc.weight"}
    for name in (*(f"h.1.{name}" for name in cut), "wte.weight"):
        assert sum(rank[name].size for rank in ranks) == weights[name].size
        assert max(rank[name].size for rank in ranks) < weights[name].size
    found = reference.logits_of_ranks(model, ranks, tokens)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * np.abs(expected).max())
    if model.num_attention_heads % degree == 0:
        wrong = [cut_when_fused(model, weights, rank, degree) for rank in range(degree)]
        assert {n: a.shape for n, a in wrong[0].items()} == {n: a.shape for n, a in ranks[0].items()}
        difference = np.abs(reference.logits_of_ranks(model, wrong, tokens) - expected).max()
        assert difference > 0.05 * np.abs(expected).max(), "cutting the fused matrix makes no difference"
    swapped = reference.logits_of_ranks(model, [ranks[0], *ranks[:0:-1]], tokens)
    assert degree == 2 or np.abs(swapped - expected).max() > 0.05 * np.abs(expected).max()


def test_a_rank_alone_gives_the_logits_of_its_vocabulary_from_its_heads() -> None:
    model = model_of()
    weights, tokens = cases.weights(model), cases.batch(model).inputs[0]
    tokens = tokens % tensor_slice(weight_axes("wte.weight"), sizes(model), 0, 2)["v"][1]
    piece = piece_of(model, weights, 0, 2)
    found = reference.logits(model, piece, tokens)
    assert found.shape == (*tokens.shape, len(piece["wte.weight"]))


@pytest.mark.parametrize("name", PRESETS)
def test_counts_are_those_of_a_closed_formula(name: str) -> None:
    model = load_model(name)
    h, f = model.hidden_size, model.ffn_size
    block = 4 * h * h + 2 * h * f + 9 * h + f
    heads = 1 if model.tie_word_embeddings else 2
    embeddings = (heads * model.vocab_size + model.max_position_embeddings) * h
    assert count_parameters(model) == embeddings + model.num_layers * block + 2 * h
    matrices = model.num_layers * (4 * h * h + 2 * h * f) + model.vocab_size * h
    assert flops_per_token(model, 512) == 6 * matrices + 12 * model.num_layers * h * 512


@pytest.mark.parametrize("name", PRESETS)
def test_every_name_is_there_once(name: str) -> None:
    model = load_model(name)
    task = TaskSpec(name="classification", num_labels=3, lora=LoraSpec(rank=2, targets=list(LORA_TARGETS)))
    for table in (parameters(model), parameters(model, task)):
        names = [p.name for p in table]
        assert len(set(names)) == len(names)
        assert all(weight_axes(p.name) == p.axes for p in table)
        layers = {p.layer for p in table}
        assert layers == {None, *range(model.num_layers)}


def test_lora_and_a_classifier_are_parameters() -> None:
    model = model_of()
    task = TaskSpec(name="classification", num_labels=3, lora=LoraSpec(rank=2, targets=["k", "fc"]))
    table = {p.name: p for p in parameters(model, task)}
    found = shapes(model, task)
    assert found["h.1.attn.k.lora_a"] == (2, 24)
    assert found["h.1.attn.k.lora_b"] == (24, 2)
    assert found["h.0.mlp.c_fc.lora_b"] == (30, 2)
    assert found["score.weight"] == (3, 24)
    trained = {re.sub(r"h\.\d\.", "", name) for name, p in table.items() if p.trainable}
    expected = {f"{layer}.lora_{x}" for layer in ("attn.k", "mlp.c_fc") for x in "ab"}
    assert trained == {*expected, "score.weight"}
    assert all(p.trainable for p in parameters(model))


def test_matrices_and_embeddings_decay() -> None:
    model = model_of(tie_word_embeddings=False)
    by_default, of_all = OptimizerSpec(weight_decay=0.3), OptimizerSpec(weight_decay=0.3, decay="all")
    found = shapes(model)
    for p in parameters(model):
        assert weight_decay(p, by_default) == (0.3 if len(found[p.name]) > 1 else 0.0)
        assert weight_decay(p, of_all) == 0.3


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_slice_of_an_initial_value_is_that_of_the_whole(data: st.DataObject) -> None:
    model = model_of(initializer_range=0.05)
    whole = sizes(model)
    p = data.draw(st.sampled_from(parameters(model)))
    box = {}
    for letter in p.axes.letters:
        low = data.draw(st.integers(0, whole[letter] - 1))
        box[letter] = (low, data.draw(st.integers(low + 1, whole[letter])))
    expected = p.axes.spread(initial_value(p, model, whole, 7), whole)
    chosen = expected[tuple(slice(*box[letter]) for letter in p.axes.letters)]
    found = initial_value(p, model, whole, 7, box)
    np.testing.assert_array_equal(found.ravel(), chosen.ravel())
    if p.initial in ("normal", "residual"):
        other = initial_value(p, model, whole, 8, box)
        assert not np.array_equal(found, other), "the seed makes no difference"


def test_initial_values_have_their_spread() -> None:
    model = model_of(hidden_size=240, initializer_range=0.05)
    whole = sizes(model)
    for p in parameters(model):
        values = initial_value(p, model, whole, 1)
        spread = {"normal": 0.05, "residual": 0.05 / math.sqrt(4)}.get(p.initial, 0.0)
        assert values.std() == pytest.approx(spread, rel=0.1)
        assert values.mean() == pytest.approx(1.0 if p.initial == "ones" else 0.0, abs=0.01)
    names = [p.name for p in parameters(model) if p.initial in ("normal", "residual")]
    first = [float(initial_value(p, model, whole, 1).flat[0]) for p in parameters(model) if p.name in names]
    assert len(set(first)) == len(names)
