"""What each writer writes, the reader reads equal: any names, shapes and element types."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptbridge.errors import RunFailed
from gptbridge.weights.formats import (
    STORAGE_DTYPES,
    WRITERS,
    Namespace,
    TensorInfo,
    TensorRef,
    ckpt_writer,
    open_weights,
    write_ckpt,
    write_pdparams,
    write_safetensors,
    write_sharded,
    write_torch,
    write_torch_legacy,
)
from tests.weights.formats.conftest import ONE_FILE, WRITABLE, entries_of, entry, make_array, read_all

NAMES = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=40)
SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@st.composite
def state_dicts(draw: st.DrawFn, kind: str) -> dict[str, tuple[str, NDArray[Any]]]:
    names = draw(st.lists(NAMES, max_size=6, unique_by=str.casefold))
    dtypes = st.sampled_from(WRITABLE[kind])
    return {
        name: (dtype := draw(dtypes), make_array(dtype, draw(SHAPES), draw(st.integers(0, 99))))
        for name in names
        if name != "__metadata__"
    }


def assert_round_trip(kind: str, arrays: Mapping[str, tuple[str, NDArray[Any]]], **options: Any) -> None:
    write: Any = partial(WRITERS[kind], **options)
    with tempfile.TemporaryDirectory() as folder:
        path, copy = Path(folder, "weights"), Path(folder, "copy")
        write(path, entries_of(arrays))
        with open_weights(path) as weights:
            assert weights.format == kind
            assert {n: (i.dtype, i.shape) for n, i in weights.tensors.items()} == {
                name: (dtype, array.shape) for name, (dtype, array) in arrays.items()
            }
            assert read_all(weights) == {name: array.tobytes() for name, (_, array) in arrays.items()}
            infos = weights.tensors.items()
            write(copy, [(info, partial(weights.chunks, name)) for name, info in infos])
        assert copy.read_bytes() == path.read_bytes()
        assert sorted(child.name for child in Path(folder).iterdir()) == ["copy", "weights"]


@pytest.mark.parametrize("kind", ["safetensors", "torch", "torch-legacy", "pdparams"])
def test_any_state_dict_survives(kind: str) -> None:
    @settings(max_examples=40, deadline=None)
    @given(state_dicts(kind))
    def check(arrays: dict[str, tuple[str, NDArray[Any]]]) -> None:
        assert_round_trip(kind, arrays)

    check()


@settings(max_examples=40, deadline=None)
@given(state_dicts("ckpt"), st.booleans())
def test_any_state_dict_survives_in_ckpt(arrays: dict[str, tuple[str, NDArray[Any]]], crc: bool) -> None:
    if not arrays and not crc:
        return  # a .ckpt file without parameters has no bytes
    assert_round_trip("ckpt", arrays, crc=crc)


@pytest.mark.parametrize("kind", ONE_FILE)
def test_every_element_type(kind: str) -> None:
    assert_round_trip(kind, {dtype: (dtype, make_array(dtype, (3, 5))) for dtype in WRITABLE[kind]})


@pytest.mark.parametrize("kind", ONE_FILE)
def test_a_type_that_the_format_lacks_is_not_written(kind: str, tmp_path: Path) -> None:
    for dtype in set(STORAGE_DTYPES) - set(WRITABLE[kind]):
        with pytest.raises(ValueError, match=dtype):
            WRITERS[kind](tmp_path / "weights", [entry("a", dtype, make_array(dtype, (2,)))])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ONE_FILE)
def test_chunks_may_be_cut_anywhere(kind: str, tmp_path: Path) -> None:
    array = make_array("float32", (1000, 33))
    whole = array.reshape(-1).view(np.uint8)
    cuts = [0, 1, 7, 4096, 65537, len(whole)]
    pieces = [whole[start:stop] for start, stop in itertools.pairwise(cuts)]
    WRITERS[kind](tmp_path / "weights", [(TensorInfo("a", "float32", array.shape), lambda: pieces)])
    with open_weights(tmp_path / "weights") as weights:
        assert read_all(weights) == {"a": array.tobytes()}


@pytest.mark.parametrize("kind", ONE_FILE)
@pytest.mark.parametrize("size", [9, 11])
def test_chunks_of_another_size_leave_nothing_behind(kind: str, size: int, tmp_path: Path) -> None:
    wrong = TensorInfo("a", "uint8", (10,)), lambda: [np.zeros(size, np.uint8)]
    with pytest.raises(ValueError, match="a: the chunks"):
        WRITERS[kind](tmp_path / "weights", [wrong])
    assert not list(tmp_path.iterdir())


def test_an_error_keeps_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_text("before")

    def fail() -> list[NDArray[Any]]:
        raise RunFailed("no more")

    with pytest.raises(RunFailed):
        write_safetensors(path, [(TensorInfo("a", "uint8", (10,)), fail)])
    assert path.read_text() == "before"
    assert [child.name for child in tmp_path.iterdir()] == ["weights"]


def test_output_replaces_a_link_and_does_not_follow_it(tmp_path: Path) -> None:
    target, path = tmp_path / "target", tmp_path / "link"
    target.write_text("mine")
    path.symlink_to(target)
    write_safetensors(path, [entry("a", "float32", make_array("float32", (2,)))])
    assert target.read_text() == "mine"
    assert not path.is_symlink()


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="No such file"):
        write_safetensors(tmp_path / "absent" / "weights", [])


def test_safetensors_metadata_survives(tmp_path: Path) -> None:
    write_safetensors(tmp_path / "weights", [], metadata={"format": "np", "a": "\u4e2d"})
    with open_weights(tmp_path / "weights") as weights:
        assert weights.metadata == {"format": "np", "a": "\u4e2d"}


TREE: dict[Any, Any] = {
    "args": Namespace(hidden_size=48, lr=1e-4, names=["a", None], flag=True, big=-(1 << 40)),
    "checkpoint_version": 3.0,
    "model": {"language_model": {"weight": TensorRef("w"), 0: TensorRef("b")}, "tied": TensorRef("w")},
    "shape": (1, (2, 70000), ()),
}


@pytest.mark.parametrize("write", [write_torch, write_torch_legacy, write_pdparams])
def test_nested_trees_survive(write: Any, tmp_path: Path) -> None:
    arrays = {"w": ("float32", make_array("float32", (3, 4))), "b": ("float16", make_array("float16", (4,)))}
    write(tmp_path / "weights", entries_of(arrays), tree=TREE)
    with open_weights(tmp_path / "weights") as weights:
        tree: Any = weights.tree
        assert isinstance(tree["args"], Namespace)
        assert tree["args"] == TREE["args"]
        assert (tree["checkpoint_version"], tree["shape"]) == (3.0, (1, (2, 70000), ()))
        assert list(weights.tensors) == [
            "model.language_model.weight",
            "model.language_model.0",
            "model.tied",
        ]
        assert np.array_equal(weights.read("model.tied"), arrays["w"][1])
        assert tree["model"]["language_model"][0] == TensorRef("model.language_model.0")


@pytest.mark.parametrize("tree", [{"a": TensorRef("other")}, {"a": 1}, {"a": TensorRef("w"), "b": object()}])
def test_a_tree_that_does_not_fit_the_entries_is_not_written(tree: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"differ|object"):
        write_torch(tmp_path / "weights", [entry("w", "float32", make_array("float32", (2,)))], tree=tree)
    assert not list(tmp_path.iterdir())


def test_large_tensors_are_sliced_in_ckpt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ckpt_writer, "SLICE_BYTES", 1000)
    arrays = {"a": ("float32", make_array("float32", (33, 77))), "b": ("int8", make_array("int8", (5,)))}
    write_ckpt(tmp_path / "weights", entries_of(arrays))
    with open_weights(tmp_path / "weights") as weights:
        extents = weights.extents("a")
        assert extents is not None
        assert len(extents) == 11
        assert read_all(weights) == {name: array.tobytes() for name, (_, array) in arrays.items()}


@pytest.mark.parametrize(("kind", "suffix"), [("safetensors", "safetensors"), ("torch", "bin")])
@pytest.mark.parametrize(("limit", "files"), [(1 << 30, 1), (400, 5), (1, 6)])
def test_sharded_sets_survive(kind: str, suffix: str, limit: int, files: int, tmp_path: Path) -> None:
    arrays = {f"h.{n}": ("float32", make_array("float32", (n + 1, 20), n)) for n in range(6)}
    written = write_sharded(tmp_path, "model", suffix, entries_of(arrays), WRITERS[kind], limit)
    assert len(written) == files + (files > 1)
    with open_weights(written[-1]) as weights:
        assert weights.format == kind
        assert read_all(weights) == {name: array.tobytes() for name, (_, array) in arrays.items()}


def test_arrays_outlive_the_file(tmp_path: Path) -> None:
    array = make_array("float32", (100, 100))
    write_safetensors(tmp_path / "weights", [entry("a", "float32", array)])
    with open_weights(tmp_path / "weights") as weights:
        view = weights.read("a")
    assert np.array_equal(view.view("u4"), array.view("u4"))
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 1
