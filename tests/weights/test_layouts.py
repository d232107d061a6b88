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
from gptbridge.weights.architecture import shapes, sizes, weight_axes
from gptbridge.weights.dialects.huggingface import DIALECT as TORCH
from gptbridge.weights.dialects.registry import find_dialect, known_dialects
from gptbridge.weights.layouts.arrays import stored_array
from gptbridge.weights.layouts.axes import Axes, axes
from gptbridge.weights.layouts.boxes import Box, Piece, gather, gather_into, shape_of, sizes_of, slabs
from gptbridge.weights.layouts.matching import best_match, require_whole, solve_sizes
from gptbridge.weights.layouts.rules import Layout
from gptbridge.weights.layouts.stored import StoredAxes, stored_axes
from gptbridge_specs import ModelSpec
from tests.weights.conversion.checkpoints import hugging_face_shapes

MODEL = ModelSpec(
    vocab_size=11,
    hidden_size=12,
    num_layers=3,
    num_attention_heads=3,
    ffn_hidden_size=18,
    max_position_embeddings=5,
)
SIZES = sizes(MODEL)
LAYOUTS = [layout for dialect in known_dialects().dialects for layout in dialect.layouts]
Arrays = dict[str, NDArray[np.float32]]


def numbered() -> Arrays:
    """Every weight filled with its own counting numbers: any exchange of two entries shows."""
    arrays: Arrays = {}
    for offset, (name, shape) in enumerate(shapes(MODEL).items()):
        arrays[name] = (np.arange(math.prod(shape), dtype=np.float32) + 1000 * offset).reshape(shape)
    return arrays


def written(layout: Layout, weights: Arrays) -> Arrays:
    """Store canonical weights as `layout` says."""
    natives = layout.natives(weights, MODEL.num_layers)
    return {native.name: stored_array(native, SIZES, lambda name, box: weights[name]) for native in natives}


def held(box: Box, stored: Axes, array: NDArray[Any]) -> Piece:
    """A box that an array holds, stored as `stored`."""
    first = stored.groups[0]
    rows = math.prod(box[letter][1] - box[letter][0] for letter in first[1:])
    return Piece(box, stored, first[0], lambda start, stop: array[start * rows : stop * rows])


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: f"{layout.dialect}-{layout.variant}")
def test_every_layout_reads_what_it_writes(layout: Layout) -> None:
    weights = numbered()
    stored = written(layout, weights)
    match = require_whole(best_match([layout], [list(stored)]), "memory")
    assert match.num_layers == 3
    found: Arrays = {}
    for (_, name), native in match.natives.items():
        for number, canonical in enumerate(native.canonicals):
            order, stored_order = weight_axes(canonical), native.axes.parts[number]
            part = native.axes.view(stored[name], number, SIZES).transpose(stored_order.order_of(order))
            assert canonical not in found
            found[canonical] = part.reshape(order.shape(SIZES))
    assert found.keys() == {name for name in weights if not layout.leaves_out(name)}
    for name, array in found.items():
        assert np.array_equal(array, weights[name]), name


WIDTH, PLACES, PARTS = MODEL.hidden_size, range(MODEL.head_size), range(3)
ALL_HEADS = range(MODEL.num_attention_heads)


def column(part: int, head: int, place: int) -> int:
    """Where [q|k|v] has a column of q, k or v (part 0, 1, 2)."""
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
    """Its names in the order of q, k, v, and which column of [q|k|v] each of its columns is."""
    layouts = {layout.variant: layout for layout in find_dialect(dialect).layouts}
    parts = [f"h.1.attn.{part}.{kind}" for kind in ("weight", "bias") for part in "qkv"]
    weights = {name: numbered()[name] for name in parts}
    matrix, bias = (np.concatenate([weights[name] for name in names], -1) for names in (parts[:3], parts[3:]))
    expected = {f"{name}.weight": matrix[:, order] for name, order in columns.items()}
    if transposed:
        expected = {name: array.T for name, array in expected.items()}
    expected |= {f"{name}.bias": bias[order] for name, order in columns.items()}
    stored = written(layouts[variant], weights)
    assert list(stored) == list(expected)
    for name, array in expected.items():
        assert np.array_equal(stored[name], array), name


LIMITS = {"i": 6, "m": 4, "g": 3, "d": 2}
ORDERS = ["i (m g d)", "(m g d) i", "(g m d) i", "(m d g) i", "i (d m g)"]
JOINED = [
    "i (q:m g d | k:m d | v:m d)",
    "(q:m g d | k:m d | v:m d) i",
    "i (m (q:g d | k:d | v:d))",
    "(m (q:g d | k:d | v:d)) i",
    "(m d (q:g | k: | v:)) i",
]
PARTS_OF_JOINED = [axes("i (m g d)"), axes("i (m d)"), axes("i (m d)")]


def any_box(data: st.DataObject) -> dict[str, tuple[int, int]]:
    box = {}
    for letter, size in LIMITS.items():
        low = data.draw(st.integers(0, size - 1))
        box[letter] = (low, data.draw(st.integers(low + 1, size)))
    return box


def cut_at_random(data: st.DataObject, whole: NDArray[Any], order: Axes, layouts: list[str]) -> list[Piece]:
    """Pieces of a weight, one dimension a letter of `order`, cut along its heads, each in its own layout."""
    bounds = sorted(data.draw(st.sets(st.integers(1, 3), max_size=3)))
    pieces = []
    for start, stop in pairwise([0, *bounds, 4]):
        stored = axes(data.draw(st.sampled_from(layouts)))
        box = {**{x: (0, LIMITS[x]) for x in order.letters}, "m": (start, stop)}
        part = whole[tuple(slice(*box[x]) for x in order.letters)].transpose(order.order_of(stored))
        pieces.append(held(box, stored, np.ascontiguousarray(part).reshape(shape_of(box, stored))))
    return pieces


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_box_comes_together_from_any_cut(data: st.DataObject) -> None:
    """Cut a weight into random pieces in random layouts; any box in any layout is what slicing gives."""
    whole = np.arange(6 * 4 * 3 * 2, dtype=np.float32).reshape(6, 4, 3, 2)  # i, m, g, d
    pieces = cut_at_random(data, whole, axes(ORDERS[0]), ORDERS)
    target, layout = any_box(data), axes(data.draw(st.sampled_from(ORDERS)))
    budget = data.draw(st.integers(1, 200))
    found = slabs([target], StoredAxes((layout,)), budget)
    parts = [gather(slab[0], layout, pieces, whole.dtype).ravel() for slab in found]
    assert all(part.size <= budget for part in parts)
    sliced = whole[tuple(slice(*target[x]) for x in "imgd")]
    expected = sliced.transpose(["imgd".index(x) for x in layout.letters])
    assert np.array_equal(np.concatenate(parts), expected.ravel())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_join_comes_together_from_any_cut(data: st.DataObject) -> None:
    """The same for a tensor that joins q of two heads, k and v: its bytes, in order, in bounded slabs."""
    stored = stored_axes(data.draw(st.sampled_from(JOINED)))
    target, budget = any_box(data), data.draw(st.integers(1, 200))
    weights, boxes = [], []
    for number, order in enumerate(PARTS_OF_JOINED):
        shape = [LIMITS[x] for x in order.letters]
        weights.append(np.arange(math.prod(shape), dtype=np.float32).reshape(shape) + 1000 * number)
        boxes.append({x: target[x] for x in order.letters})
    pieces = [
        cut_at_random(data, whole, order, [str(order)])
        for whole, order in zip(weights, PARTS_OF_JOINED, strict=True)
    ]
    found = []
    for slab in slabs(boxes, stored, budget):
        assert sum(math.prod(sizes_of(box).values()) for box in slab.values()) <= budget
        if len(slab) == 1:
            ((number, box),) = slab.items()
            part = gather(box, stored.parts[number], pieces[number], np.dtype(np.float32))
        else:
            part = np.full(stored.shape(sizes_of(*slab.values())), -1, np.float32)
            for number, box in slab.items():
                view = stored.view(part, number, sizes_of(*slab.values()))
                gather_into(view, box, stored.parts[number], pieces[number])
        found.append(part.ravel())
    expected = np.empty(stored.shape(sizes_of(*boxes)), np.float32)
    for number, (whole, order, box) in enumerate(zip(weights, PARTS_OF_JOINED, boxes, strict=True)):
        sliced = whole[tuple(slice(*box[x]) for x in order.letters)]
        view = stored.view(expected, number, sizes_of(*boxes))
        view[...] = sliced.transpose(order.order_of(stored.parts[number]))
    assert np.array_equal(np.concatenate(found), expected.ravel())


@pytest.mark.parametrize("text", JOINED)
def test_rows_of_a_part_are_all_that_is_read_for_it(text: str) -> None:
    """What `rows` counts, cut out of the whole tensor, holds the part's entries of its first letter."""
    stored = stored_axes(text)
    array = np.arange(math.prod(stored.shape(LIMITS))).reshape(stored.shape(LIMITS))
    for number, part in enumerate(stored.parts):
        begin, rows = stored.rows(number, LIMITS)
        lead = part.letters[0]
        for entry in range(LIMITS[lead]):
            found = stored.view_rows(
                array[begin + entry * rows : begin + (entry + 1) * rows], number, {**LIMITS, lead: 1}
            )
            assert np.array_equal(found[0], stored.view(array, number, LIMITS)[entry])


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
        (lambda names: names - {"h.1.attn.c_attn.bias"}, "h.1.attn.c_attn.bias is missing for torch"),
        (lambda names: names | {"h.1.attn.extra"}, "h.1.attn.extra is left over"),
        (lambda names: {"encoder.weight"}, "no tensor has a name"),
        (lambda names: names | {"h.2.ln_1.wei\x1bght"}, r"h.2.ln_1.wei\x1bght is left over"),
    ],
)
def test_missing_and_left_over_tensors_are_named(change: object, words: str) -> None:
    names = change(set(hugging_face_shapes(MODEL)))  # type: ignore[operator]
    with pytest.raises(BadInput) as caught:
        require_whole(best_match(TORCH.layouts, [sorted(names)]), "file")
    assert words in str(caught.value)


def test_mask_buffers_of_old_releases_are_dropped() -> None:
    names = list(hugging_face_shapes(MODEL))
    names += ["h.0.attn.bias", "h.0.attn.masked_bias"]
    match = require_whole(best_match(TORCH.layouts, [names]), "file")
    assert set(match.dropped) == {"h.0.attn.bias", "h.0.attn.masked_bias"}


def test_sizes_that_disagree_are_named() -> None:
    tensors = [("a", stored_axes("v i"), (7, 4)), ("b", stored_axes("t i"), (5, 6))]
    with pytest.raises(BadInput, match=r"b has shape \(5, 6\), but a says 4, not 6"):
        solve_sizes(tensors, {}, "file")
    with pytest.raises(BadInput, match="not 2 dimensions"):
        solve_sizes([("a", stored_axes("v i"), (7,))], {}, "file")
