"""Files that other software wrote of one model: its weights to the bit, its logits, and the way back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge import reference
from gptbridge.weights.dialects.huggingface import read_model
from tests.weights.conversion.checkpoints import (
    HEADS,
    apart,
    arrays_in,
    assert_identical,
    converted,
    weights_of,
)
from tests.weights.conversion.conftest import HuggingFace

VECTORS = Path(__file__).with_name("vectors")
FILES = {
    "torch": Path("hf", "model.safetensors"),
    "paddle": Path("paddlenlp", "model_state.pdparams"),
    "mindspore": Path("mindformers", "gpt2.ckpt"),
}


@pytest.fixture(scope="module")
def stored() -> Mapping[str, NDArray[Any]]:
    with np.load(VECTORS / "reference.npz") as arrays:
        return dict(arrays)


@pytest.mark.parametrize("dialect", FILES)
def test_other_softwares_file(
    dialect: str, stored: Mapping[str, NDArray[Any]], hugging_face: HuggingFace, tmp_path: Path
) -> None:
    """Heads are told for MindFormers' sake; the others say the same themselves."""
    file = VECTORS / FILES[dialect]
    torch = converted(file.parent, tmp_path / "torch", "torch", hints=HEADS)
    weights = weights_of(torch)
    assert_identical(weights, {name[2:]: array for name, array in stored.items() if name.startswith("w:")})
    ids = stored["ids"].astype(np.int32)
    ours = reference.logits(read_model(torch / "config.json"), apart(weights), ids)
    assert np.abs(ours - stored["logits"]).max() < 1e-5
    assert np.abs(hugging_face.logits(torch, ids) - stored["logits"]).max() < 1e-5
    there = converted(torch, tmp_path / "there", dialect)
    if dialect != "torch":  # which transformers writes with `transformer.`, and we without
        assert_identical(arrays_in(there / file.name), arrays_in(file))
    assert_identical(weights_of(converted(there, tmp_path / "back", "torch")), weights)


@pytest.mark.parametrize("form", ["safetensors", "shards", "zip", "legacy", "bfloat16"])
def test_every_form_that_transformers_saves(form: str, hugging_face: HuggingFace, tmp_path: Path) -> None:
    expected = hugging_face.save(tmp_path / "saved", form)
    files = [*tmp_path.glob("saved/*.safetensors"), *tmp_path.glob("saved/*.bin")]
    assert (len(files) > 1) == (form == "shards")
    there = converted(tmp_path / "saved", tmp_path / "there", "mindspore")
    back = converted(there, tmp_path / "back", "torch")
    assert np.abs(hugging_face.logits(back) - expected).max() < 1e-5
