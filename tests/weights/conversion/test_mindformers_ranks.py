"""MindFormers' rank folders: strategy files, copies and parts, stages; MindSpore itself merges and splits."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gptbridge.errors import BadInput
from gptbridge.weights.dialects.mindspore.strategies import TensorLayout
from gptbridge.weights.dialects.mindspore.strategy_files import encode_strategy, read_strategies
from gptbridge.weights.formats import open_weights
from gptbridge.weights.opening import Hints
from tests.weights.conversion.checkpoints import HEADS, converted, digest_of, facts_of, rewrite_ckpt

SCRIPT = Path(__file__).with_name("frameworks") / "split_with_mindspore.py"
MERGED = {"t2": (2, 1), "p2": (1, 2), "t2p2": (2, 2)}
EMBEDDING = "backbone.embedding.word_embedding.embedding_table"


BIAS = "backbone.blocks.1.output.projection.bias"
PROJECTION = "backbone.blocks.2.attention.projection.bias"
Arrays = dict[str, NDArray[Any]]


def spoil(arrays: Arrays) -> None:
    arrays[BIAS][0] = 9.0


def halved(name: str, half: int) -> Callable[[Arrays], None]:
    def change(arrays: Arrays) -> None:
        arrays[name] = np.split(arrays[name], 2)[half]

    return change


def strategies(names: dict[str, int]) -> dict[str, dict[str, dict[str, Any]]]:
    """Cuts such as MindFormers makes, and rarer ones, by the name of the case."""

    def plan(devices: list[int], rows: int, columns: int, **more: Any) -> dict[str, dict[str, Any]]:
        """`rows` and `columns`: the device axis, from the right, that cuts those linear weights."""
        plans = {}
        for name, dimensions in names.items():
            tensor_map = [-1] * dimensions
            if "dense" in name or name.endswith(("projection.weight",)):
                tensor_map[0] = rows
            elif "mapping" in name:
                tensor_map[-1] = columns
            plans[name] = {"devices": devices, "map": tensor_map, "step": 0, "size": 0, **more}
        return plans

    tensor = plan([2], 0, 0)
    copies = plan([2, 2], 0, 0)
    outer = plan([2, 2], 1, 1)  # the tensor ranks are far apart, the copies near
    optimizer = plan([2, 2], 0, 0)
    for name in names:
        if name.endswith(("dense1.weight", "mapping.weight", "dense3.bias")):
            optimizer[name] |= {"step": 2, "size": 2}
        elif name.endswith(("gamma", "position_embedding.embedding_table")):
            optimizer[name] |= {"step": 1, "size": 4 if "1" in name else 2}
    inside_heads = plan([8], -1, -1)  # 8 parts of 4 heads: each ends inside one
    inside_heads[next(name for name in names if name.endswith("dense2.weight"))] |= {"step": 1, "size": 8}
    return {
        "tensor": tensor,
        "copies": copies,
        "outer": outer,
        "optimizer": optimizer,
        "inside_heads": inside_heads,
    }


@pytest.fixture(scope="module")
def exchanged(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What MindSpore merged of ours, and split for us."""
    root = tmp_path_factory.mktemp("mindspore")
    (root / "split").mkdir()
    for name, (tensor, pipeline) in MERGED.items():
        converted(original, root / "merge" / name, "mindspore", tensor, pipeline)
    whole = converted(original, root / "whole", "mindspore")
    (root / "split" / "whole" / "rank_0").mkdir(parents=True)
    shutil.copy(whole / "gpt2.ckpt", root / "split" / "whole" / "rank_0")
    with open_weights(whole / "gpt2.ckpt") as weights:
        names = {name: len(info.shape) for name, info in weights.tensors.items()}
    for name, plans in strategies(names).items():
        (root / "split" / f"{name}.json").write_text(json.dumps(plans))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(root)], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", MERGED)
def test_mindspore_merges_our_ranks_to_the_whole(case: str, exchanged: Path) -> None:
    with (
        np.load(exchanged / "merge" / f"{case}.npz") as merged,
        open_weights(exchanged / "whole" / "gpt2.ckpt") as weights,
    ):
        assert set(merged) == set(weights.tensors)
        for name in weights.tensors:
            assert np.array_equal(merged[name], weights.read(name)), name


@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", ["tensor", "copies", "outer", "optimizer", "inside_heads"])
def test_we_merge_what_mindspore_split(case: str, exchanged: Path, original: Path, tmp_path: Path) -> None:
    folder = exchanged / "split" / case
    facts = facts_of(folder, HEADS)
    assert facts.files == {"tensor": 2, "inside_heads": 8}.get(case, 4)
    assert digest_of(folder, HEADS) == digest_of(original)


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2), (2, 2), (4, 4)])
def test_ranks_without_strategy_files_are_told_apart(
    tensor: int, pipeline: int, original: Path, tmp_path: Path
) -> None:
    folder = converted(original, tmp_path / "ranks", "mindspore", tensor, pipeline)
    shutil.rmtree(folder / "strategy")
    facts = facts_of(folder)
    assert (facts.tensor_parallel, facts.pipeline_parallel) == (tensor, pipeline)
    assert digest_of(folder) == digest_of(original)


def test_data_parallel_copies_are_found_and_compared(original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "ranks", "mindspore", 2)
    shutil.rmtree(folder / "strategy")
    for rank in (0, 1):
        shutil.copytree(folder / f"rank_{rank}", folder / f"rank_{rank + 2}")
    facts = facts_of(folder)
    assert (facts.files, facts.tensor_parallel) == (4, 2)
    assert digest_of(folder) == digest_of(original)
    rewrite_ckpt(folder / "rank_3" / "gpt2.ckpt", spoil)
    with pytest.raises(BadInput, match=f"{BIAS} differs from the one in .*rank_0.*not ranks of one"):
        digest_of(folder)


def test_a_cut_embedding_is_put_together(original: Path, tmp_path: Path) -> None:
    """MindFormers cuts the table when vocab_emb_dp is off; without strategy files its bytes tell."""
    folder = converted(original, tmp_path / "ranks", "mindspore", 2, vocab_size=64)
    shutil.rmtree(folder / "strategy")
    expected = digest_of(folder)
    for rank in (0, 1):
        rewrite_ckpt(folder / f"rank_{rank}" / "gpt2.ckpt", halved(EMBEDDING, rank))
    assert digest_of(folder) == expected


def test_newest_step_that_all_ranks_have(original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "ranks", "mindspore", 2)
    for rank in (0, 1):
        (folder / f"rank_{rank}" / "gpt2.ckpt").rename(folder / f"rank_{rank}" / f"m_rank_{rank}-2_10.ckpt")
    (folder / "rank_0" / "m_rank_0-10_2.ckpt").write_bytes(b"a later one, cut off by a crash")
    assert digest_of(folder) == digest_of(original)
    (folder / "rank_1" / "m_rank_1-2_10.ckpt").rename(folder / "rank_1" / "m_rank_1-2_9.ckpt")
    with pytest.raises(BadInput, match="no step in common"):
        digest_of(folder)


def test_strategy_files_are_found_beside_or_given(original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "output" / "checkpoint", "mindspore", 2)
    ours = [*(folder / "strategy").iterdir()]
    for file in ours:  # cut the biases as well, which shapes cannot tell
        layouts = dict(read_strategies([file])[0])
        layouts[PROJECTION] = TensorLayout((2,), ((0,),))
        file.write_bytes(encode_strategy(layouts, 0))
    for rank in (0, 1):
        rewrite_ckpt(folder / f"rank_{rank}" / "gpt2.ckpt", halved(PROJECTION, rank))
    expected = digest_of(original)
    assert digest_of(folder) == expected
    beside = folder.parent / "strategy"
    (folder / "strategy").rename(beside)
    assert digest_of(folder) == expected
    elsewhere = tmp_path / "elsewhere"
    beside.rename(elsewhere)
    assert digest_of(folder, Hints(strategy=elsewhere)) == expected
    assert digest_of(folder, Hints(strategy=elsewhere / ours[0].name)) == expected
    as_json(elsewhere / ours[1].name, tmp_path / "one.json")
    assert digest_of(folder, Hints(strategy=tmp_path / "one.json")) == expected
    with pytest.raises(BadInput, match=f"{PROJECTION} has shape"):
        digest_of(folder)
    with pytest.raises(BadInput, match="No such file"):
        digest_of(folder, Hints(strategy=tmp_path / "absent.ckpt"))
    with pytest.raises(BadInput, match="holds no strategy file"):
        digest_of(folder, Hints(strategy=folder.parent))


def as_json(source: Path, target: Path) -> None:
    layouts = read_strategies([source])[0]
    content = {
        "parallel_strategy_item": {name: {"stage": 0} for name in layouts},
        "parallel_layout_item": {
            name: {
                "dev_matrix": list(layout.devices),
                "tensor_map": [len(layout.devices) - 1 - cut[0] if cut else -1 for cut in layout.cuts],
            }
            for name, layout in layouts.items()
        },
    }
    target.write_text(json.dumps(content))


def test_the_optimizers_cut_needs_a_strategy_file(exchanged: Path, tmp_path: Path) -> None:
    folder = tmp_path / "ranks"
    shutil.copytree(exchanged / "split" / "optimizer", folder)
    shutil.rmtree(folder / "strategy")
    with pytest.raises(BadInput, match=r"does not tell how the 4 ranks .* --strategy PATH"):
        digest_of(folder, HEADS)


@pytest.mark.parametrize(
    ("layout", "problem"),
    [
        ({"dev_matrix": [2], "tensor_map": [0, 0]}, "layout is malformed"),
        ({"dev_matrix": [2], "tensor_map": [1]}, "layout is malformed"),
        ({"dev_matrix": [], "tensor_map": []}, "layout is malformed"),
        ({"dev_matrix": [2], "tensor_map": [-2]}, "layout is malformed"),
        ({"dev_matrix": [2.0], "tensor_map": [0]}, "layout is malformed"),
        ({"dev_matrix": [True], "tensor_map": [0]}, "layout is malformed"),
        ({"dev_matrix": [1 << 20, 1 << 20], "tensor_map": [0]}, "over 1099511627776 devices"),
        ({"dev_matrix": [2] * 40, "tensor_map": [0]}, "layout is malformed"),
        ({"dev_matrix": "2", "tensor_map": [0]}, "layout is malformed"),
        (
            {"dev_matrix": [2, 2], "tensor_map": [0], "opt_weight_shard_step": 1, "opt_weight_shard_size": 2},
            "the optimizer cuts it into 2, 1 ranks apart",
        ),
        (
            {"dev_matrix": [4, 2], "tensor_map": [0], "opt_weight_shard_step": 2, "opt_weight_shard_size": 3},
            "the optimizer cuts it into 3",
        ),
    ],
)
def test_malformed_layouts_are_refused_by_name(layout: dict[str, Any], problem: str, tmp_path: Path) -> None:
    path = tmp_path / "strategy.json"
    path.write_text(json.dumps({"parallel_layout_item": {"some\x1b.weight": layout}}))
    with pytest.raises(BadInput, match=rf"strategy.json: some\\x1b.weight: .*{problem}"):
        read_strategies([path])


def test_damaged_and_contradictory_strategies_are_refused(original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "ranks", "mindspore", 2)
    first, second = sorted((folder / "strategy").iterdir())
    content = first.read_bytes()
    for cut in (1, len(content) // 2, len(content) - 1):
        second.write_bytes(content[:cut])
        with pytest.raises(BadInput, match=second.name):
            digest_of(folder)
    layouts = dict(read_strategies([first])[0])
    layouts[PROJECTION] = TensorLayout((2,), ((0,),))
    second.write_bytes(encode_strategy(layouts, 0))
    with pytest.raises(BadInput, match=r"rank_1.ckpt: cuts stage 0 otherwise than .*rank_0.ckpt"):
        digest_of(folder)
    second.write_bytes(encode_strategy(read_strategies([first])[0], 1))
    with pytest.raises(BadInput, match="2 ranks in 2 stages, but the strategy of stage 0 is for 2"):
        digest_of(folder)
    shutil.rmtree(folder / "rank_1")
    second.unlink()
    with pytest.raises(BadInput, match="1 ranks in 1 stages, but the strategy of stage 0 is for 2"):
        digest_of(folder)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_layout_survives_its_file(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    devices = data.draw(st.lists(st.integers(1, 8), min_size=1, max_size=4))
    axes = data.draw(st.permutations(range(len(devices))))
    dimensions = data.draw(st.integers(0, len(devices)))
    cuts = tuple((axes[number],) if data.draw(st.booleans()) else () for number in range(dimensions))
    layouts = {name: TensorLayout(tuple(devices), cuts) for name in ("a.weight", "b")}
    stage = data.draw(st.integers(0, 40))
    path = tmp_path_factory.mktemp("strategy") / "strategy_rank_0.ckpt"
    path.write_bytes(encode_strategy(layouts, stage))
    assert read_strategies([path]) == {stage: layouts}


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200))
def test_bytes_of_any_kind_are_refused_or_read(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.ckpt"
    valid = encode_strategy({"a": TensorLayout((2,), ((0,),))}, 0)
    for candidate in (content, valid + content, valid[: len(content)] + content):
        path.write_bytes(candidate)
        with suppress(BadInput):
            read_strategies([path])
