"""Checkpoints of MindFormers 2: slices in safetensors files, and metadata.json on where they belong."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from gptbridge.errors import BadInput
from gptbridge.weights.opening import Hints
from tests.weights.conversion.checkpoints import (
    HEADS,
    MODEL,
    arrays_in,
    assert_identical,
    converted,
    digest_of,
    facts_of,
    weights_of,
)

Arrays = Mapping[str, NDArray[Any]]
Cut = Callable[[str], tuple[int, ...]]  # how often each axis of a tensor is cut
TENSOR_PARALLEL = {  # by the end of a name
    "word_embeddings.weight": (2, 1),
    "linear_qkv.weight": (2, 1),
    "linear_qkv.bias": (2,),
    "linear_proj.weight": (1, 2),
    "linear_fc1.weight": (2, 1),
    "linear_fc1.bias": (2,),
    "linear_fc2.weight": (1, 2),
}
CLASSIC = {"embedding_table": (2, 1), "dense1.weight": (2, 2), "mapping.weight": (1, 4), "mapping.bias": (4,)}


def cut_by(table: Mapping[str, tuple[int, ...]]) -> Cut:
    return lambda name: next((counts for end, counts in table.items() if name.endswith(end)), ())


def save(folder: Path, arrays: Arrays, cut: Cut, ranks: int, *, prefix: str = "gpt-") -> dict[str, Any]:
    """Write what mindformers.checkpoint.save_checkpoint does of `ranks` ranks; return metadata.json."""
    folder.mkdir(parents=True)
    described: dict[str, Any] = {}
    stored: dict[str, Any] = {}
    files: dict[str, dict[str, NDArray[Any]]] = {}
    everything = {**arrays, **{f"adam_m.{name}": array for name, array in arrays.items()}}
    for name, array in everything.items():
        counts = cut(name) or (1,) * array.ndim
        part = tuple(size // count for size, count in zip(array.shape, counts, strict=True))
        kind = "opt" if name.startswith("adam_m.") else "model"
        slices = []
        for number, place in enumerate(product(*map(range, counts))):
            box = tuple(slice(p * n, (p + 1) * n) for p, n in zip(place, part, strict=True))
            owners = range(number % ranks, ranks, min(math.prod(counts), ranks))
            for rank in owners:
                file = f"{prefix}{kind}-{rank:07d}-{ranks:07d}.safetensors"
                files.setdefault(file, {})[name] = np.ascontiguousarray(array[box])
                record = {"file_name": file, "storage_rank": rank, "rank_group": list(owners)}
                stored.setdefault(str((name, (number,))), []).append(record)
            slices.append({"global_offset": [number], "local_shape": list(part)})
        described[name] = {
            "properties": {"dtype": "Float32", "replica_id": 0, "allow_shape_mismatch": False},
            "global_shape": list(array.shape),
            "axis_fragmentations": list(counts),
            "layout": None,
            "chunk": slices,
        }
    for file, content in files.items():
        save_file(content, folder / file, {"format": "ms"})
    metadata = {"state_dict_metadata": described, "storage_data": stored}
    (folder / "metadata.json").write_text(json.dumps(metadata, separators=(",", ":")))
    (folder / "common.json").write_text(json.dumps({"global_step": 10}))
    return metadata


@pytest.fixture(scope="module")
def core(original: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[Any]]:
    """The model's weights by the names of MindFormers 2's GPTModel, the vocabulary padded."""
    folder = tmp_path_factory.mktemp("core")
    source = converted(original, folder / "m", "megatron", variant="core", vocab_size=64)
    arrays = arrays_in(source / "release/mp_rank_00/model_optim_rng.pt")
    return {core_name(name): array for name, array in arrays.items()}


def core_name(name: str) -> str:
    """MindFormers 2's name for one of Megatron-Core's below `model.`."""
    for old, new in {"layernorm.weight": "layernorm.gamma", "layernorm.bias": "layernorm.beta"}.items():
        name = name.replace(old, new)
    return name


def classic(original: Path, folder: Path) -> dict[str, NDArray[Any]]:
    """The model's weights by MindFormers' older names."""
    return arrays_in(converted(original, folder, "mindspore") / "gpt2.ckpt")


VOCABULARY = Hints(model=type(HEADS.model)({**HEADS.model.fields, "vocab_size": MODEL.vocab_size}, "test"))


def assert_same(source: Path, original: Path, hints: Hints = VOCABULARY) -> None:
    back = converted(source, source.parent / f"{source.name}-back", "torch", hints=hints, vocab_size=61)
    assert_identical(weights_of(back), weights_of(original))


@pytest.mark.parametrize("prefix", ["", "model.", "network.model."])
def test_slices_of_tensor_parallel_ranks(prefix: str, core: Arrays, original: Path, tmp_path: Path) -> None:
    run = tmp_path / "checkpoint"
    arrays = {prefix + name.removeprefix("model."): array for name, array in core.items()}
    save(run / "iteration_00000010", arrays, cut_by(TENSOR_PARALLEL), ranks=4)
    (run / "latest_checkpointed_iteration.txt").write_text("10")
    slices = run / "iteration_00000010/gpt-model-0000001-0000004.safetensors"
    for place in (run, run / "iteration_00000010", run / "iteration_00000010/metadata.json", slices):
        facts = facts_of(place, VOCABULARY)
        assert (facts.dialect, facts.format, facts.model.vocab_size) == ("mindspore", "slices", 61)
        assert digest_of(place, VOCABULARY) == digest_of(original)
    assert_same(run, original)


def test_slices_by_the_older_names_are_numbered_row_by_row(original: Path, tmp_path: Path) -> None:
    arrays = classic(original, tmp_path / "ms")
    padded = np.pad(arrays["backbone.embedding.word_embedding.embedding_table"], ((0, 1), (0, 0)))
    arrays["backbone.embedding.word_embedding.embedding_table"] = padded
    metadata = save(tmp_path / "it", arrays, cut_by(CLASSIC), ranks=4)
    assert_same(tmp_path / "it", original)
    entry = metadata["state_dict_metadata"]["backbone.blocks.0.attention.dense1.weight"]
    entry["axis_fragmentations"] = [1, 4]  # the same slices, side by side
    entry["chunk"] = [{**chunk, "local_shape": [48, 12]} for chunk in entry["chunk"]]
    (tmp_path / "it/metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(BadInput, match=r"float32 \(24, 24\), said to be float32 \(48, 12\)"):
        digest_of(tmp_path / "it", VOCABULARY)


def test_one_rank_saves_no_metadata(core: Arrays, original: Path, tmp_path: Path) -> None:
    save(tmp_path / "it", core, lambda name: (), ranks=1, prefix="")
    (tmp_path / "it/metadata.json").unlink()
    for place in (tmp_path / "it", tmp_path / "it/model-0000000-0000001.safetensors"):
        assert digest_of(place, VOCABULARY) == digest_of(original)


def test_slices_without_their_metadata_are_refused(core: Arrays, tmp_path: Path) -> None:
    save(tmp_path / "it", core, cut_by(TENSOR_PARALLEL), ranks=2)
    (tmp_path / "it/metadata.json").unlink()
    with pytest.raises(BadInput, match=r"slices of MindFormers 2 without their metadata\.json"):
        facts_of(tmp_path / "it", VOCABULARY)


def test_the_optimizers_files_need_not_be_there(core: Arrays, original: Path, tmp_path: Path) -> None:
    save(tmp_path / "it", core, cut_by(TENSOR_PARALLEL), ranks=2)
    for file in (tmp_path / "it").glob("*opt-*"):
        file.unlink()
    assert_same(tmp_path / "it", original)
    (tmp_path / "it/gpt-model-0000001-0000002.safetensors").unlink()
    with pytest.raises(BadInput, match=r"gpt-model-0000001-0000002\.safetensors: cannot be opened"):
        facts_of(tmp_path / "it", VOCABULARY)


def test_the_optimizers_state_in_the_models_files_is_left_out(
    core: Arrays, original: Path, tmp_path: Path
) -> None:
    arrays = {
        **core,
        **{f"{kind}.{name}": 2 * x for name, x in core.items() for kind in ("adam_v", "main_param")},
    }
    save(tmp_path / "it", {**arrays, "global_step": np.array([7])[:, None]}, lambda name: (), ranks=1)
    assert_same(tmp_path / "it", original)


def test_the_runs_yaml_beside_it_is_read(core: Arrays, original: Path, tmp_path: Path) -> None:
    save(tmp_path / "it", core, cut_by(TENSOR_PARALLEL), ranks=2)
    settings = """model:
  model_config:
    vocab_size: 61
    num_attention_heads: 4
    num_hidden_layers: 4
    intermediate_size: 96
    hidden_size: 48
    layernorm_epsilon: 1.0e-6
    hidden_act: gelu
    hidden_dropout: 0.25
    untie_embeddings_and_output_weights: true
"""
    (tmp_path / "it/run.yaml").write_text(settings)
    facts = facts_of(tmp_path / "it")
    model = facts.model
    assert (model.layernorm_epsilon, model.hidden_dropout_prob, model.vocab_size) == (1e-6, 0.25, 61)
    assert any("the weights hold none" in warning for warning in facts.warnings)
    for key, value in {
        "normalization": "RMSNorm",
        "position_embedding_type": "rope",
        "gated_linear_unit": "true",
        "use_contiguous_weight_layout_attention": "true",
        "hidden_act": "silu",
    }.items():
        changed = settings.replace("    hidden_act: gelu\n", "") + f"    {key}: {value}\n"
        (tmp_path / "it/run.yaml").write_text(changed)
        with pytest.raises(BadInput, match=rf"run\.yaml.*{key} is "):
            facts_of(tmp_path / "it")


NAME = "model.decoder.layers.0.self_attention.linear_qkv.weight"
BROKEN: dict[str, tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = {
    "no description": (lambda d, s: d.update({NAME: 3}), "its description is malformed"),
    "a type": (lambda d, s: d[NAME]["properties"].update(dtype="Int4"), "its description is malformed"),
    "a shape": (lambda d, s: d[NAME].update(global_shape=[-144, 48]), "a dimension is negative"),
    "a cut of another rank": (lambda d, s: d[NAME].update(axis_fragmentations=[2]), "is malformed"),
    "a cut that does not divide": (
        lambda d, s: d[NAME].update(axis_fragmentations=[5, 1]),
        "cannot be cut into",
    ),
    "no cut": (lambda d, s: d[NAME].update(axis_fragmentations=[0, 1]), "cannot be cut into"),
    "interleaved": (lambda d, s: d[NAME].update(layout={"interleaved_parallel": True}), "cut interleaved"),
    "a slice short": (lambda d, s: d[NAME]["chunk"].pop(), "no part holds what is at"),
    "a slice twice": (lambda d, s: d[NAME]["chunk"].append(d[NAME]["chunk"][0]), "overlaps another"),
    "a slice too many": (
        lambda d, s: (
            d[NAME]["chunk"][0].update(global_offset=[9]),
            s.update({str((NAME, (9,))): s[str((NAME, (0,)))]}),
        ),
        "has a slice 9",
    ),
    "a slice before the first": (
        lambda d, s: (
            d[NAME]["chunk"][0].update(global_offset=[-1]),
            s.update({str((NAME, (-1,))): s[str((NAME, (0,)))]}),
        ),
        "has a slice -1",
    ),
    "a slice of another shape": (
        lambda d, s: d[NAME]["chunk"][0].update(local_shape=[72, 24]),
        "its slice .* is malformed",
    ),
    "a slice in no file": (lambda d, s: s.pop(str((NAME, (1,)))), "its slice 1 is in no file"),
    "a file elsewhere": (
        lambda d, s: s[str((NAME, (1,)))][0].update(file_name="../x.safetensors"),
        "is said to be in",
    ),
    "a file without it": (
        lambda d, s: s[str((NAME, (1,)))][0].update(file_name="other.safetensors"),
        "is said to be here, and is not",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_metadata_is_refused_for_its_tensor(kind: str, core: Arrays, tmp_path: Path) -> None:
    metadata = save(tmp_path / "it", core, cut_by(TENSOR_PARALLEL), ranks=2)
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "it/other.safetensors")
    change, reason = BROKEN[kind]
    change(metadata["state_dict_metadata"], metadata["storage_data"])
    (tmp_path / "it/metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(BadInput, match=rf"linear_qkv\.weight.*{reason}"):
        digest_of(tmp_path / "it", VOCABULARY)


def test_metadata_without_storage_is_refused(core: Arrays, tmp_path: Path) -> None:
    save(tmp_path / "it", core, cut_by(TENSOR_PARALLEL), ranks=2)
    (tmp_path / "it/metadata.json").write_text('{"state_dict_metadata": {}}')
    with pytest.raises(BadInput, match="holds no state_dict_metadata with its storage_data"):
        facts_of(tmp_path / "it", VOCABULARY)
    shutil.copy(tmp_path / "it/common.json", tmp_path / "it/metadata.json")
    with pytest.raises(BadInput, match="is JSON without a weight_map"):
        facts_of(tmp_path / "it", VOCABULARY)


@pytest.mark.parametrize("value", ["[],", "0,", '{"a":0},'])
def test_a_metadata_of_endless_values_is_refused(value: str, core: Arrays, tmp_path: Path) -> None:
    save(tmp_path / "it", core, cut_by(TENSOR_PARALLEL), ranks=2)
    text = '{"state_dict_metadata": {"x": [' + 1_400_000 * value + "0]}}"
    (tmp_path / "it/metadata.json").write_text(text)
    with pytest.raises(BadInput, match=r"metadata\.json: the index is not JSON: it holds more than"):
        facts_of(tmp_path / "it", VOCABULARY)
