"""Layouts: every dialect's table carries every weight both ways, whatever the shape and the cut."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptbridge.errors import BadInput
from gptbridge.weights.canonical import parameters
from gptbridge.weights.dialects.huggingface import DIALECT as TORCH
from gptbridge.weights.dialects.registry import find_dialect, known_dialects
from gptbridge.weights.layouts.axes import Axes, axes, letter_sizes, rearranged
from gptbridge.weights.layouts.boxes import Box, Piece, gather, shape_of, slabs
from gptbridge.weights.layouts.matching import best_match, require_whole, solve_sizes
from gptbridge.weights.layouts.rules import Layout, canonical_axes
from gptbridge_specs import ModelSpec

MODEL = ModelSpec(
    vocab_size=11,
    hidden_size=12,
    num_layers=3,
    num_attention_heads=3,
    ffn_hidden_size=18,
    max_position_embeddings=5,
)
SIZES = letter_sizes(MODEL)
LAYOUTS = [layout for dialect in known_dialects().dialects for layout in dialect.layouts]
Arrays = dict[str, NDArray[np.float32]]


def numbered() -> Arrays:
    """Every weight filled with its own counting numbers: any exchange of two entries shows."""
    arrays: Arrays = {}
    for offset, parameter in enumerate(parameters(MODEL)):
        count = int(np.prod(parameter.shape))
        arrays[parameter.name] = (np.arange(count, dtype=np.float32) + 1000 * offset).reshape(parameter.shape)
    return arrays


def written(layout: Layout, weights: Arrays) -> Arrays:
    """Store canonical weights as `layout` says."""
    result: Arrays = {}
    for native in layout.natives(weights, MODEL.num_layers):
        whole = weights[native.canonical]
        if native.part is not None:
            whole = np.split(whole, 3, axis=-1)[native.part]
            source = axes("i (n d)") if whole.ndim == 2 else axes("(n d)")
        else:
            source = canonical_axes(native.canonical)
        result[native.name] = np.ascontiguousarray(rearranged(whole, source, native.axes, SIZES))
    return result


def held(box: Box, stored: Axes, array: NDArray[Any], order: Axes | None = None) -> Piece:
    """A box that an array holds, stored as `stored`; `order` has the letters of the whole weight."""
    first = stored.groups[0]
    rows = math.prod(box[letter][1] - box[letter][0] for letter in first[1:])
    return Piece(box, order or stored, first[0], lambda start, stop: array[start * rows : stop * rows])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.dialect}-{layout.variant}")
def test_every_layout_reads_what_it_writes(layout: Layout) -> None:
    weights = numbered()
    stored = written(layout, weights)
    match = require_whole(best_match([layout], [list(stored)]), "memory")
    assert match.num_layers == 3
    pieces: dict[str, list[Piece]] = {}
    for (_, name), native in match.natives.items():
        box = {x: (0, SIZES[x]) for x in canonical_axes(native.canonical).letters}
        if native.part is not None:
            box["p"] = (native.part, native.part + 1)
        pieces.setdefault(native.canonical, []).append(held(box, native.axes, stored[name], native.box_axes))
    for name, whole in weights.items():
        full = {x: (0, SIZES[x]) for x in canonical_axes(name).letters}
        back = gather(full, canonical_axes(name), pieces[name], np.dtype(np.float32))
        assert np.array_equal(back, whole), name


WIDTH, PLACES, PARTS = MODEL.hidden_size, range(MODEL.head_size), range(3)
ALL_HEADS = range(MODEL.num_attention_heads)


def column(part: int, head: int, place: int) -> int:
    """Where Hugging Face's c_attn has a column of q, k or v (part 0, 1, 2)."""
    return part * WIDTH + head * MODEL.head_size + place


PLAIN = [column(p, n, d) for p in PARTS for n in ALL_HEADS for d in PLACES]
BY_HEAD = [column(p, n, d) for n in ALL_HEADS for p in PARTS for d in PLACES]
INTERLEAVED = [column(p, n, d) for n in ALL_HEADS for d in PLACES for p in PARTS]
APART = [PLAIN[part * WIDTH : (part + 1) * WIDTH] for part in PARTS]
CLASSIC = "model.language_model.encoder.layers.1.self_attention.query_key_value"
CORE = "model.decoder.layers.1.self_attention.linear_qkv"


@pytest.mark.parametrize(
    ("dialect", "variant", "transposed", "columns"),
    [
        ("torch", "GPT2Model", False, {"h.1.attn.c_attn": PLAIN}),
        (
            "paddle",
            "GPTForPretraining",
            False,
            {f"gpt.decoder.layers.1.self_attn.{'qkv'[p]}_proj": APART[p] for p in PARTS},
        ),
        ("fleetx", "fused", False, {"gpt.decoder.layers.1.self_attn.qkv_proj": BY_HEAD}),
        (
            "fleetx",
            "split",
            False,
            {f"gpt.decoder.layers.1.self_attn.{'qkv'[p]}_proj": APART[p] for p in PARTS},
        ),
        ("fleetx", "pipeline", False, {"2.self_attn.qkv_proj": BY_HEAD}),
        (
            "mindspore",
            "GPT2LMHeadModel",
            True,
            {f"backbone.blocks.1.attention.dense{p + 1}": APART[p] for p in PARTS},
        ),
        (
            "modelscope",
            "large",
            True,
            {"module.language_model.encoder.layers.1.self_attention.query_key_value": BY_HEAD},
        ),
        (
            "modelscope",
            "base",
            True,
            {"language_model.transformer.layers.1.attention.query_key_value": PLAIN},
        ),
        ("megatron", "version-0", True, {CLASSIC: PLAIN}),
        ("megatron", "version-1", True, {CLASSIC: INTERLEAVED}),
        ("megatron", "version-2", True, {CLASSIC: BY_HEAD}),
        ("megatron", "version-3", True, {CLASSIC: BY_HEAD}),
        ("megatron", "core", True, {CORE: BY_HEAD}),
        ("megatron", "core-fused-norms", True, {CORE: BY_HEAD}),
    ],
)
def test_q_k_and_v_lie_as_each_systems_own_code_has_them(
    dialect: str, variant: str, transposed: bool, columns: dict[str, list[int]]
) -> None:
    """Its names in the order of q, k, v, and which column of Hugging Face's c_attn each of its columns is."""
    layouts = {layout.variant: layout for layout in find_dialect(dialect).layouts}
    weights = {name: array for name, array in numbered().items() if "h.1.attn.c_attn" in name}
    matrix, bias = weights.values()
    expected = {f"{name}.weight": matrix[:, order] for name, order in columns.items()}
    if transposed:
        expected = {name: array.T for name, array in expected.items()}
    expected |= {f"{name}.bias": bias[order] for name, order in columns.items()}
    stored = written(layouts[variant], weights)
    assert list(stored) == list(expected)
    for name, array in expected.items():
        assert np.array_equal(stored[name], array), name


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_box_comes_together_from_any_cut(data: st.DataObject) -> None:
    """Cut a weight into random pieces in random layouts; any box in any layout is what slicing gives."""
    orders = ["i (p n d)", "(p n d) i", "(n p d) i", "(n d p) i", "i (n p d)"]
    whole = np.arange(6 * 3 * 4 * 2, dtype=np.float32).reshape(6, 3, 4, 2)  # i, p, n, d
    limits = {"i": 6, "p": 3, "n": 4, "d": 2}
    bounds = sorted(data.draw(st.sets(st.integers(1, 3), max_size=3)))
    cuts = [0, *bounds, 4]
    pieces = []
    for start, stop in pairwise(cuts):
        layout = axes(data.draw(st.sampled_from(orders)))
        part = whole[:, :, start:stop].transpose(["ipnd".index(x) for x in layout.letters])
        box = {**{x: (0, n) for x, n in limits.items()}, "n": (start, stop)}
        stored = np.ascontiguousarray(part).reshape(shape_of(box, layout))
        pieces.append(held(box, layout, stored))
    target = {}
    for letter, size in limits.items():
        low = data.draw(st.integers(0, size - 1))
        target[letter] = (low, data.draw(st.integers(low + 1, size)))
    layout = axes(data.draw(st.sampled_from(orders)))
    budget = data.draw(st.integers(1, 200))
    parts = [gather(box, layout, pieces, whole.dtype).ravel() for box in slabs(target, layout, budget)]
    assert all(part.size <= budget for part in parts)
    sliced = whole[tuple(slice(*target[x]) for x in "ipnd")]
    expected = sliced.transpose(["ipnd".index(x) for x in layout.letters])
    assert np.array_equal(np.concatenate(parts), expected.ravel())


def test_padding_is_zero_and_cut_exactly() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3) + 1
    piece = held({"v": (0, 4), "i": (0, 3)}, axes("v i"), rows)
    padded = gather({"v": (0, 6), "i": (0, 3)}, axes("v i"), [piece], rows.dtype)
    assert np.array_equal(padded[:4], rows)
    assert not padded[4:].any()
    assert np.array_equal(gather({"v": (0, 2), "i": (0, 3)}, axes("v i"), [piece], rows.dtype), rows[:2])


def test_large_transposition_goes_through_tiles() -> None:
    matrix = np.random.default_rng(0).normal(size=(700, 900)).astype(np.float32)
    piece = held({"i": (0, 700), "f": (0, 900)}, axes("i f"), matrix)
    assert np.array_equal(gather(piece.box, axes("f i"), [piece], matrix.dtype), matrix.T)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda names: names - {"h.1.attn.c_attn.bias"}, "h.1.attn.c_attn.bias is missing"),
        (lambda names: names | {"h.1.attn.extra"}, "h.1.attn.extra is left over"),
        (lambda names: {"encoder.weight"}, "no tensor has a name"),
        (lambda names: names | {"h.2.ln_1.wei\x1bght"}, r"h.2.ln_1.wei\x1bght is left over"),
    ],
)
def test_missing_and_left_over_tensors_are_named(change: object, words: str) -> None:
    names = change({parameter.name for parameter in parameters(MODEL)})  # type: ignore[operator]
    with pytest.raises(BadInput) as caught:
        require_whole(best_match(TORCH.layouts, [sorted(names)]), "file")
    assert words in str(caught.value)


def test_mask_buffers_of_old_releases_are_dropped() -> None:
    names = [parameter.name for parameter in parameters(MODEL)]
    names += ["h.0.attn.bias", "h.0.attn.masked_bias"]
    match = require_whole(best_match(TORCH.layouts, [names]), "file")
    assert set(match.dropped) == {"h.0.attn.bias", "h.0.attn.masked_bias"}


def test_sizes_that_disagree_are_named() -> None:
    tensors = [("a", axes("v i"), (7, 4)), ("b", axes("t i"), (5, 6))]
    with pytest.raises(BadInput, match=r"b has shape \(5, 6\), but a says 4, not 6"):
        solve_sizes(tensors, {}, "file")
    with pytest.raises(BadInput, match="not 2 dimensions"):
        solve_sizes([("a", axes("v i"), (7,))], {}, "file")
