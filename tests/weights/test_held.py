"""What the ranks of a layout hold: together everything, each weight owned once, slices as they lie."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptbridge.process.place import Place, chunk, places
from gptbridge.weights.architecture import parameters, shapes, sizes
from gptbridge.weights.held import HeldTensor, held_names
from gptbridge.weights.layouts.arrays import stored_array
from gptbridge.weights.layouts.gpt2 import gpt2_in_memory
from gptbridge.weights.shards import Memory, from_arrays, shards_of
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import ParallelSpec

MODEL = ModelSpec(
    num_layers=6, hidden_size=18, num_attention_heads=6, vocab_size=67, max_position_embeddings=7
)
Array = NDArray[np.float32]


class Arrays(Memory[Array]):
    """Tensors that are NumPy arrays."""

    def download(self, tensor: Array, /) -> Array:
        return tensor

    def upload(self, tensor: Array, array: Array, /) -> None:
        tensor[...] = array


def numbered() -> dict[str, Array]:
    """Weights whose every number is another."""
    random = np.random.default_rng(5)
    return {name: random.random(shape, np.float32) for name, shape in shapes(MODEL).items()}


def empty_tensors(place: Place, *, out_in: bool, sliced: bool) -> dict[str, Array]:
    layout = gpt2_in_memory("test", out_in=out_in)
    natives = layout.natives(held_names(MODEL, place), MODEL.num_layers)
    held = [HeldTensor(native, sizes(MODEL), place, sliced) for native in natives]
    return {tensor.native.name: np.full(tensor.shape, np.nan, np.float32) for tensor in held}


@settings(max_examples=25, deadline=None)
@given(
    tensor=st.sampled_from([1, 2, 3]),
    pipeline=st.sampled_from([1, 2, 3]),
    virtual=st.sampled_from([1, 2]),
    sharding=st.sampled_from([1, 2, 4]),
    data=st.sampled_from([1, 2]),
    out_in=st.booleans(),
    sliced=st.booleans(),
)
def test_the_ranks_hold_the_whole_model_and_own_it_once(
    tensor: int, pipeline: int, virtual: int, sharding: int, data: int, out_in: bool, sliced: bool
) -> None:
    parallel = ParallelSpec(
        tensor=tensor, pipeline=pipeline, virtual_pipeline=virtual, sharding=sharding, data=data
    )
    weights = numbered()
    layout = gpt2_in_memory("test", out_in=out_in)
    joined = {name: np.full(array.shape, np.nan, np.float32) for name, array in weights.items()}
    owners = {name: np.zeros(array.shape, int) for name, array in weights.items()}
    for place in places(parallel):
        tensors = empty_tensors(place, out_in=out_in, sliced=sliced)
        shards = shards_of(MODEL, layout, tensors, Arrays(), place, sliced=sliced)
        for shard in shards:
            shard.write(from_arrays(MODEL, weights)(shard.name, shard.box))
        assert not any(np.isnan(held).any() for held in tensors.values())
        for shard in shards:
            chosen = tuple(slice(*shard.box[letter]) for letter in shard.axes.letters)
            spread = shard.axes.spread(joined[shard.name], sizes(MODEL))
            spread[chosen] = shard.read().reshape(spread[chosen].shape)
            shard.axes.spread(owners[shard.name], sizes(MODEL))[chosen] += shard.owned
    for name, array in weights.items():
        assert np.array_equal(joined[name], array), name
        assert (owners[name] == 1).all(), name


def test_a_slice_is_that_of_the_fused_tensor() -> None:
    """What a rank holds of c_attn is rows of the tensor that one process has."""
    layout = gpt2_in_memory("test", out_in=True)
    weights = numbered()
    names = [parameter.name for parameter in parameters(MODEL)]
    natives, read = layout.natives(names, MODEL.num_layers), from_arrays(MODEL, weights)
    whole = {native.name: stored_array(native, sizes(MODEL), read) for native in natives}
    for index in range(4):
        place = Place(ParallelSpec(sharding=4), index)
        tensors = empty_tensors(place, out_in=True, sliced=True)
        for shard in shards_of(MODEL, layout, tensors, Arrays(), place, sliced=True):
            shard.write(from_arrays(MODEL, weights)(shard.name, shard.box))
        for name, held in tensors.items():
            assert np.array_equal(held, whole[name][slice(*chunk(len(whole[name]), 4, index))]), name


def test_groups_meet_in_every_dimension() -> None:
    parallel = ParallelSpec(pipeline=2, data=2, sharding=2, tensor=2)
    assert Place(parallel).groups("tensor") == [[n, n + 1] for n in range(0, 16, 2)]
    assert Place(parallel).groups("data", "sharding")[:2] == [[0, 2, 4, 6], [1, 3, 5, 7]]
    assert Place(parallel).ends()[0] == [0, 8]
    for place, dimension in product(places(parallel), ("pipeline", "data", "sharding", "tensor")):
        mine = [group for group in place.groups(dimension) if place.rank in group]  # type: ignore[arg-type]
        assert len(mine) == 1
        assert mine[0][place.index(dimension)] == place.rank  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layers", "expected"), [(6, [range(1), range(3, 4)]), (12, [range(2), range(6, 8)])]
)
def test_virtual_stages_go_round(layers: int, expected: list[range]) -> None:
    assert Place(ParallelSpec(pipeline=3, virtual_pipeline=2)).layers(layers) == expected
