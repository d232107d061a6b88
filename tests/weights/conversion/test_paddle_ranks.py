"""The files that PaddleNLP's trainer writes, one for each tensor and pipeline rank, cut here by hand."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from gptbridge.errors import BadInput
from tests.weights.conversion.checkpoints import MODEL, arrays_in, converted, digest_of

# What PaddleNLP's GPT cuts, and along which axis; the rest every rank has whole.
CUT = (
    (r".*self_attn\.[qkv]_proj\.weight|.*linear1\.weight", 1),
    (r".*self_attn\.[qkv]_proj\.bias|.*linear1\.bias", 0),
    (r".*(out_proj|linear2|word_embeddings)\.weight", 0),
)
LAYER = re.compile(r"gpt\.decoder\.layers\.(\d+)\.")


def stage_of(name: str, stages: int) -> int:
    layer = LAYER.match(name)
    if layer:
        return int(layer[1]) * stages // MODEL.num_layers
    return stages - 1 if "decoder.norm" in name else 0


def write_ranks(whole: Path, folder: Path, tensor: int, stages: int) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text((whole / "config.json").read_text())
    for t in range(tensor):
        for p in range(stages):
            held = {}
            for name, array in arrays_in(whole / "model_state.pdparams").items():
                axis = next((axis for pattern, axis in CUT if re.fullmatch(pattern, name)), None)
                part = array if axis is None else np.split(array, tensor, axis)[t]
                if stage_of(name, stages) == p:
                    held[name] = np.ascontiguousarray(part)
            rank = f"tp{t:02}" + (f"_pp{p:02}" if stages > 1 else "")
            (folder / f"model_state.{rank}.pdparams").write_bytes(pickle.dumps(held, protocol=4))
    return folder


@pytest.fixture
def whole(original: Path, tmp_path: Path) -> Path:
    """A vocabulary of 64 rows, which ranks can share."""
    return converted(original, tmp_path / "whole", "paddle", vocab_size=64)


@pytest.mark.parametrize(("tensor", "stages"), [(2, 1), (4, 1), (1, 2), (2, 2), (4, 4)])
def test_ranks_merge_to_the_whole(tensor: int, stages: int, whole: Path, tmp_path: Path) -> None:
    ranks = write_ranks(whole, tmp_path / "ranks", tensor, stages)
    assert digest_of(ranks) == digest_of(whole)
    merged = converted(ranks, tmp_path / "merged", "paddle")
    for name in ("model_state.pdparams", "config.json"):
        assert (merged / name).read_bytes() == (whole / name).read_bytes()


def test_a_rank_that_is_missing_is_named(whole: Path, tmp_path: Path) -> None:
    ranks = write_ranks(whole, tmp_path / "ranks", 2, 2)
    (ranks / "model_state.tp01_pp00.pdparams").unlink()
    with pytest.raises(BadInput, match="tensor rank 1, pipeline rank 0 is missing"):
        digest_of(ranks)


def test_one_rank_alone_is_not_taken_for_the_whole(whole: Path, tmp_path: Path) -> None:
    ranks = write_ranks(whole, tmp_path / "ranks", 2, 1)
    (ranks / "model_state.tp01.pdparams").unlink()
    with pytest.raises(BadInput):
        digest_of(ranks)
