"""Which files are read, what is left out, and what is asked for where no file says it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptbridge.errors import BadInput
from gptbridge.weights.configs.model import build_model
from gptbridge.weights.formats import write_pdparams, write_sharded
from gptbridge.weights.opening import Hints
from gptbridge.weights.opening.discovery import find_files
from tests.weights.conversion.checkpoints import (
    MODEL,
    arrays_in,
    assert_identical,
    converted,
    digest_of,
    entries_of,
    facts_of,
    rewrite_ckpt,
    rewrite_torch,
    weights_of,
)
from tests.weights.conversion.commands import Outcome, assert_refused

MEGATRON_FILE = Path("release", "mp_rank_00", "model_optim_rng.pt")


@pytest.mark.parametrize(
    ("dialect", "file"),
    [
        ("torch", "model.safetensors"),
        ("paddle", "model_state.pdparams"),
        ("fleetx", "model.pdparams"),
        ("mindspore", "gpt2.ckpt"),
        ("modelscope", "model/mp_rank_00_model_states.pt"),
        ("megatron", str(MEGATRON_FILE)),
    ],
)
def test_heads_that_no_file_says_are_asked_for(
    dialect: str, file: str, run: Callable[..., Outcome], source: Path, tmp_path: Path
) -> None:
    weights = converted(source, tmp_path / "made", dialect) / file
    if dialect == "megatron":
        rewrite_torch(weights, lambda tree: tree.pop("args"))
    alone = weights.rename(tmp_path / weights.name)
    words = "the number of attention heads is in no file beside the tensors. Give --num-attention-heads N, "
    for command in (("convert", alone, tmp_path / "out", "--to", "torch"), ("inspect", alone)):
        assert_refused(run(*command), 2, words, tmp_path)
        code, text = run(*command, "--num-attention-heads", 4)
        assert (code, text) == (0, "")
        if command[0] == "convert":
            assert_identical(weights_of(tmp_path / "out"), weights_of(source))
            (tmp_path / "out").rename(tmp_path / "done")


@pytest.mark.parametrize("name", ["vocab_size", "hidden_size", "num_layers", "max_position_embeddings"])
def test_no_size_is_made_up(name: str) -> None:
    fields = {key: value for key, value in MODEL.model_dump().items() if key != name}
    with pytest.raises(BadInput, match=f"neither the files nor the tensors say {name}"):
        build_model(fields, "the file")


def test_megatron_without_a_version_is_version_0(original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "old", "megatron", variant="version-0")
    rewrite_torch(folder / MEGATRON_FILE, lambda tree: tree.pop("checkpoint_version"))
    assert facts_of(folder).variant == "version-0"
    assert digest_of(folder) == digest_of(original)


@pytest.mark.parametrize("version", [4, 4.0, -1, 2.5, True, "3", None, [3]])
def test_another_version_of_megatron_is_refused(version: Any, original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "new", "megatron")
    rewrite_torch(folder / MEGATRON_FILE, lambda tree: tree.update(checkpoint_version=version))
    with pytest.raises(BadInput, match=r"checkpoint_version is .* \(allowed: 0, 1, 2, 3\)"):
        facts_of(folder)


def test_the_pointer_names_an_iteration_by_its_number(original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "run", "megatron")
    (folder / "release").rename(folder / "iter_0000100")
    other = converted(original, tmp_path / "other", "megatron", dtype="float16")
    (other / "release").rename(folder / "iter_0000200")
    pointer = folder / "latest_checkpointed_iteration.txt"
    for text, dtype in (("100", "float32"), ("200\n", "float16")):
        pointer.write_text(text)
        assert facts_of(folder).dtypes.keys() == {dtype}
    wrong = (("300", "points to iter_0000300 or 300 or"), ("x", "holds 'x'"), ("1" * 2000, "2000 bytes of"))
    for text, words in wrong:
        pointer.write_text(text)
        with pytest.raises(BadInput, match=words):
            facts_of(folder)


@pytest.mark.parametrize(
    ("dialect", "pipeline", "rank", "words"),
    [
        ("modelscope", 1, "model/mp_rank_01_model_states.pt", "tensor rank 1, pipeline rank 0"),
        ("fleetx", 2, "mp_01_sharding_00_pp_00", "tensor rank 1, pipeline rank 0"),
        ("megatron", 2, "release/mp_rank_00_001", "tensor rank 0, pipeline rank 1"),
    ],
)
def test_a_rank_that_is_missing_is_named(
    dialect: str,
    pipeline: int,
    rank: str,
    words: str,
    run: Callable[..., Outcome],
    source: Path,
    tmp_path: Path,
) -> None:
    folder = converted(source, tmp_path / "split", dialect, 4, pipeline, vocab_size=64)
    (folder / rank).rename(tmp_path / "aside")
    outcome = run("convert", folder, tmp_path / "out", "--to", "torch")
    assert_refused(outcome, 5, f"the file of {words} is missing", tmp_path)


def test_paddle_in_shards(original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "paddle", "paddle")
    file = folder / "model_state.pdparams"
    arrays = arrays_in(file)
    file.unlink()
    half = sum(array.nbytes for array in arrays.values()) * 2 // 3
    names = [
        path.name
        for path in write_sharded(folder, "model_state", "pdparams", entries_of(arrays), write_pdparams, half)
    ]
    assert names == [
        "model_state-00001-of-00002.pdparams",
        "model_state-00002-of-00002.pdparams",
        "model_state.pdparams.index.json",
    ]
    assert digest_of(folder) == digest_of(original)
    (folder / names[1]).unlink()
    with pytest.raises(BadInput, match=names[1]):
        facts_of(folder)


@pytest.mark.parametrize("variant", ["GPT2LMHeadModel", "GPT2Model"])
def test_the_causal_masks_of_mindformers_are_dropped(variant: str, original: Path, tmp_path: Path) -> None:
    """What its own converter makes of Hugging Face's buffers."""
    folder = converted(original, tmp_path / "mindformers", "mindspore", variant=variant)
    prefix = "backbone." if variant == "GPT2LMHeadModel" else ""
    masks = {
        f"{prefix}blocks.{layer}.attention.{name}": np.tril(np.ones((1, 1, 20, 20), np.float32))
        for layer in range(MODEL.num_layers)
        for name in ("beta", "masked_beta")
    }
    rewrite_ckpt(folder / "gpt2.ckpt", lambda arrays: arrays.update(masks))
    assert set(facts_of(folder).left_out) == set(masks)
    back = converted(folder, tmp_path / "back", "torch", hints=Hints("mindspore"))
    assert_identical(weights_of(back), weights_of(original))


def test_parts_without_their_metadata_are_refused(tmp_path: Path) -> None:
    (tmp_path / "common.pt").write_bytes(b"PK")
    (tmp_path / "__0_0.distcp").write_bytes(b"PK")
    with pytest.raises(BadInput, match=r"\.distcp files without their \.metadata"):
        find_files(tmp_path)
    (tmp_path / ".metadata").write_bytes(b"")
    assert find_files(tmp_path).files == (tmp_path / ".metadata",)
