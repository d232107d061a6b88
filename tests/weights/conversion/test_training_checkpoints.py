"""What trainers leave beside the weights, and how they number virtual stages, is no obstacle."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from gptbridge.errors import BadInput
from gptbridge.weights.formats import write_pdparams
from gptbridge.weights.opening import Hints
from tests.weights.conversion.checkpoints import (
    NO_HINTS,
    arrays_in,
    assert_identical,
    converted,
    entries_of,
    facts_of,
    rewrite_ckpt,
    weights_of,
)

_TRAIN_MEGATRON = Path(__file__).with_name("frameworks") / "train_megatron.py"


def assert_same(folder: Path, original: Path, hints: Hints = NO_HINTS, **options: int) -> None:
    back = converted(folder, folder.with_name("back"), "torch", hints=hints, **options)
    assert_identical(weights_of(back), weights_of(original))


@pytest.mark.parametrize(
    ("variant", "tensor", "pipeline", "virtual"),
    [("version-0", 2, 1, 1), ("version-3", 2, 2, 1), ("core", 1, 4, 2)],
)
def test_megatron(
    variant: str, tensor: int, pipeline: int, virtual: int, original: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "megatron"
    converted(original, folder, "megatron", tensor, pipeline, variant=variant, vocab_size=64)
    subprocess.run([sys.executable, _TRAIN_MEGATRON, folder, str(virtual)], check=True, timeout=60)
    facts = facts_of(folder)
    assert facts.files == tensor * pipeline // virtual
    assert facts.pipeline_parallel == pipeline // virtual
    assert "rng_tracker_states.model-parallel-rng" in facts.left_out
    assert_same(folder, original, vocab_size=61)


def test_fleetx_virtual_stages(original: Path, tmp_path: Path) -> None:
    """Parts 0 to 6 (embedding, 4 layers, norm, head) in chunks from 0, 2, 4 and 5: names of pp_layers.py."""
    folder = converted(original, tmp_path / "fleetx", "fleetx", 1, 4)
    starts = (0, 2, 4, 5)
    for file in folder.glob("*/model.pdparams"):
        arrays = {}
        for name, array in arrays_in(file).items():
            if found := re.match(r"(\d+)\.(.+)", name):
                start = max(start for start in starts if start <= int(found[1]))
                arrays[f"{start}.{int(found[1]) - start}.{found[2]}"] = array
            else:
                arrays[name] = array
                arrays[name.replace("shared_layers.embed", "0.0")] = array
                arrays[name.replace("shared_layers", "5")] = array
        write_pdparams(file, entries_of(arrays))
    assert_same(folder, original)


@pytest.mark.parametrize("variant", ["GPT2LMHeadModel", "GPT2Model"])
def test_mindformers(variant: str, original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "mindspore", "mindspore", variant=variant)
    state = {"global_step": 7, "lr": 1e-4, "scale_sense": 2.0, "epoch_num": 1}

    def train(arrays: dict[str, NDArray[Any]]) -> None:
        weights = list(arrays)
        for prefix in ("adam_m", "adam_v", "exp_avg", "exp_avg_sq"):
            arrays.update({f"{prefix}.{name}": np.zeros_like(arrays[name]) for name in weights})
        arrays.update({name: np.array([value], np.float32) for name, value in state.items()})

    rewrite_ckpt(folder / "gpt2.ckpt", train)
    assert set(state) < set(facts_of(folder).left_out)
    assert_same(folder, original)


def test_ranks_of_a_bare_mindformers_model(original: Path, tmp_path: Path) -> None:
    folder = converted(
        original, tmp_path / "mindspore", "mindspore", 2, 2, variant="GPT2Model", vocab_size=64
    )
    assert facts_of(folder).tensor_parallel == 2
    assert_same(folder, original, vocab_size=61)
    for file in (folder / "strategy").iterdir():
        file.unlink()
    (folder / "strategy").rmdir()
    (folder.with_name("back")).rename(tmp_path / "first")
    assert_same(folder, original, vocab_size=61)


def test_a_wrapper_around_every_name(original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "mindspore", "mindspore")
    file = folder / "gpt2.ckpt"
    rewrite_ckpt(file, lambda arrays: _rename(arrays, lambda name: f"network.{name}"))
    assert_same(folder, original)
    doubled = {"backbone.layernorm.gamma": np.zeros(48, np.float32)}
    rewrite_ckpt(file, lambda arrays: arrays.update(doubled))
    with pytest.raises(BadInput, match=r"backbone\.layernorm\.gamma is left over"):
        facts_of(folder)
    weights = weights_of(original)
    folder = Path(shutil.copytree(original, tmp_path / "torch"))
    save_file({f"module.transformer.{name}": x for name, x in weights.items()}, folder / "model.safetensors")
    (tmp_path / "back").rename(tmp_path / "first")
    assert_same(folder, original)


def _rename(arrays: dict[str, NDArray[Any]], change: Callable[[str], str]) -> None:
    renamed = {change(name): array for name, array in arrays.items()}
    arrays.clear()
    arrays.update(renamed)
