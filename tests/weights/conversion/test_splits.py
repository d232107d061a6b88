"""Tensor- and pipeline-parallel files merge to the unsplit bytes, and hold what each system needs of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gptbridge.weights.conversion.verifying import verify
from gptbridge.weights.formats import TensorRef, Tree, open_weights
from gptbridge.weights.opening import Hints
from tests.weights.conversion.checkpoints import (
    MODEL,
    arrays_in,
    converted,
    facts_of,
    random_weights,
    weights_of,
    write_hugging_face,
)

SIX_HEADS = MODEL.model_copy(update={"num_attention_heads": 6, "num_layers": 3})
FOUR = (MODEL, 64)
SIX = (SIX_HEADS, 66)
SPLITS = [
    (FOUR, "fleetx", 2, 1),
    (FOUR, "fleetx", 4, 1),
    (FOUR, "fleetx", 1, 4),
    (FOUR, "fleetx", 2, 2),
    (FOUR, "modelscope", 4, 1),
    (FOUR, "mindspore", 2, 1),
    (FOUR, "megatron", 2, 1),
    (FOUR, "megatron", 1, 2),
    (FOUR, "megatron", 4, 4),
    (SIX, "fleetx", 3, 3),
    (SIX, "modelscope", 6, 1),
    (SIX, "mindspore", 3, 3),
    (SIX, "megatron", 3, 1),
    (SIX, "megatron", 6, 3),
]
VARIANTS = {"megatron": ("version-0", "version-1", "version-3", "core")}


@pytest.mark.parametrize(("sizes", "dialect", "tensor", "pipeline"), SPLITS)
def test_split_merges_to_the_unsplit_bytes(
    sizes: tuple[Any, int], dialect: str, tensor: int, pipeline: int, tmp_path: Path
) -> None:
    model, padded = sizes
    source = write_hugging_face(tmp_path / "in", model, random_weights(model))
    unsplit = (converted(source, tmp_path / "one", "torch") / "model.safetensors").read_bytes()
    for variant in VARIANTS.get(dialect, (None,)):
        split = converted(
            source, tmp_path / f"{variant}", dialect, tensor, pipeline, variant=variant, vocab_size=padded
        )
        facts = facts_of(split)
        assert facts.files == tensor * pipeline
        back = converted(split, tmp_path / f"{variant}-back", "torch", hints=Hints(dialect), vocab_size=61)
        assert (back / "model.safetensors").read_bytes() == unsplit
        assert verify(source, split).passed


def test_other_degrees_come_from_a_split(original: Path, tmp_path: Path) -> None:
    four = converted(original, tmp_path / "four", "megatron", 4, 2, vocab_size=64)
    two = converted(four, tmp_path / "two", "megatron", 2, 1)
    direct = converted(original, tmp_path / "direct", "megatron", 2, 1, vocab_size=64)
    for name in ("release/mp_rank_00/model_optim_rng.pt", "release/mp_rank_01/model_optim_rng.pt"):
        assert (two / name).read_bytes() == (direct / name).read_bytes()


CLASSIC = "model.language_model.embedding.word_embeddings.weight"
CORE = "model.embedding.word_embeddings.weight"
FLEETX = "shared_layers.embed.word_embeddings.weight"
MINDFORMERS = "backbone.embedding.word_embedding.embedding_table"
MODELSCOPE = "module.language_model.embedding.word_embeddings.weight"
MEGATRON_FILE = "release/mp_rank_{t:02d}_{p:03d}/model_optim_rng.pt"
MODELSCOPE_FILE = "model/mp_rank_{t:02d}_model_states.pt"


def file_of(folder: Path, pattern: str, t: int, p: int) -> Path:
    return folder / pattern.format(t=t, p=p, rank=2 * p + t)


@pytest.mark.parametrize(
    ("dialect", "variant", "stages", "pattern", "embedding", "head"),
    [
        ("megatron", "version-0", 4, MEGATRON_FILE, CLASSIC, "model.word_embeddings_for_head.weight"),
        ("megatron", "version-3", 4, MEGATRON_FILE, CLASSIC, "model.word_embeddings_for_head.weight"),
        ("megatron", "core", 4, MEGATRON_FILE, CORE, "model.output_layer.weight"),
        ("megatron", "core-fused-norms", 4, MEGATRON_FILE, CORE, "model.output_layer.weight"),
        ("fleetx", None, 4, "mp_{t:02d}_sharding_00_pp_{p:02d}/model.pdparams", FLEETX, FLEETX),
        ("mindspore", None, 4, "rank_{rank}/gpt2.ckpt", MINDFORMERS, MINDFORMERS),
        ("modelscope", None, 1, MODELSCOPE_FILE, MODELSCOPE, None),
    ],
)
def test_the_first_and_the_last_stage_hold_the_embedding(
    dialect: str,
    variant: str | None,
    stages: int,
    pattern: str,
    embedding: str,
    head: str | None,
    original: Path,
    tmp_path: Path,
) -> None:
    """The last one for its head; the rows of padding are zeros. MindFormers cuts no vocabulary."""
    folder = converted(original, tmp_path / "out", dialect, 2, stages, variant=variant, vocab_size=64)
    padded = np.zeros((64, MODEL.hidden_size), np.float32)
    padded[:61] = weights_of(original)["wte.weight"]
    for rank in range(2):
        rows = padded if dialect == "mindspore" else padded[32 * rank : 32 * (rank + 1)]
        for stage in range(stages):
            arrays = arrays_in(file_of(folder, pattern, rank, stage))
            expected = {embedding} if stage == 0 else {head} if stage == stages - 1 else set()
            held = {name for name, array in arrays.items() if array.shape == rows.shape}
            assert held == expected
            for name in held:
                assert np.array_equal(arrays[name], rows)


def test_the_last_stage_of_fleetx_holds_the_positions_too(original: Path, tmp_path: Path) -> None:
    """Its pipeline layer shares the whole embedding, not only the table."""
    folder = converted(original, tmp_path / "out", "fleetx", 1, 2)
    for stage in range(2):
        arrays = arrays_in(folder / f"mp_00_sharding_00_pp_{stage:02d}" / "model.pdparams")
        name = "shared_layers.embed.position_embeddings.weight"
        assert np.array_equal(arrays[name], weights_of(original)["wpe.weight"])


@pytest.mark.parametrize("variant", ["version-3", "core"])
def test_a_head_of_its_own_takes_the_place_of_the_copy(variant: str, tmp_path: Path) -> None:
    model = MODEL.model_copy(update={"tie_word_embeddings": False})
    weights = random_weights(model)
    source = write_hugging_face(tmp_path / "in", model, weights)
    folder = converted(source, tmp_path / "out", "megatron", 1, 2, variant=variant)
    arrays = arrays_in(file_of(folder, MEGATRON_FILE, 0, 1))
    held = {name: array for name, array in arrays.items() if array.shape == weights["wte.weight"].shape}
    prefix = "model." if variant == "core" else "model.language_model."
    assert held.keys() == {f"{prefix}output_layer.weight"}
    assert np.array_equal(held.popitem()[1], weights["lm_head.weight"])


def tree_of(file: Path) -> Any:
    """What a torch file holds, with the names of tensors in their places."""
    with open_weights(file) as weights:
        return named(weights.tree)


def named(tree: Tree) -> Any:
    if isinstance(tree, TensorRef):
        return tree.name
    return {key: named(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("pipeline", [1, 2])
def test_the_degrees_are_where_each_system_looks_for_them(
    tensor: int, pipeline: int, original: Path, tmp_path: Path
) -> None:
    folder = converted(original, tmp_path / "fleetx", "fleetx", tensor, pipeline, vocab_size=64)
    settings = yaml.safe_load((folder / "model.yaml").read_text())
    assert settings["Distributed"] == {"mp_degree": tensor, "pp_degree": pipeline}
    folder = converted(original, tmp_path / "megatron", "megatron", tensor, pipeline, vocab_size=64)
    files = list(folder.glob("release/*/model_optim_rng.pt"))
    assert len(files) == tensor * pipeline
    for file in files:
        args = tree_of(file)["args"]
        degrees = (args["tensor_model_parallel_size"], args["pipeline_model_parallel_size"])
        assert degrees == (tensor, pipeline)
        assert args["padded_vocab_size"] == 64
    if pipeline == 1:
        folder = converted(original, tmp_path / "modelscope", "modelscope", tensor, vocab_size=64)
        assert json.loads((folder / "configuration.json").read_text())["megatron"] == {
            "world_size": tensor,
            "tensor_model_parallel_size": tensor,
            "checkpoint_tensor_model_parallel_size": tensor,
        }


def test_modelscope_finds_its_weights_under_module(original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "out", "modelscope", 2, vocab_size=64)
    for rank in range(2):
        tree = tree_of(file_of(folder, MODELSCOPE_FILE, rank, 0))
        assert tree.keys() == {"module"}
        assert all(name == f"module.{key}" for key, name in tree["module"].items())
        assert "language_model.encoder.layers.3.mlp.dense_h_to_4h.weight" in tree["module"]


def test_megatron_finds_its_modules_in_nested_dicts(original: Path, tmp_path: Path) -> None:
    """Down to the transformer, whose names stay whole; Megatron-Core has one dict of names."""
    tree = tree_of(
        converted(original, tmp_path / "old", "megatron") / "release/mp_rank_00/model_optim_rng.pt"
    )
    inner = tree["model"]["language_model"]
    assert inner["embedding"]["word_embeddings"]["weight"] == CLASSIC
    assert inner["embedding"]["position_embeddings"].keys() == {"weight"}
    name = "layers.3.mlp.dense_h_to_4h.weight"
    assert inner["encoder"][name] == f"model.language_model.encoder.{name}"
    assert (tree["checkpoint_version"], tree["iteration"]) == (3.0, 0)
    folder = converted(original, tmp_path / "core", "megatron", variant="core")
    tree = tree_of(folder / "release/mp_rank_00/model_optim_rng.pt")
    assert tree["model"]["embedding.word_embeddings.weight"] == CORE
    assert tree["model"]["decoder.layers.3.mlp.linear_fc1.weight"].startswith("model.decoder")
