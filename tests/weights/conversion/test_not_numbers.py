"""NaN and infinity in weights: convert and inspect name the tensor, whatever its type and place."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from gptbridge.errors import BadInput
from gptbridge.weights.canonical.casting import FLOATS, cast
from gptbridge.weights.conversion.convert import Conversion, convert_checkpoint
from gptbridge.weights.formats.finite import all_finite, finite_chunks
from tests.weights.conversion.commands import Outcome, assert_refused

NUMBERS = [np.nan, np.inf, -np.inf]
LARGEST: dict[str, float] = {
    "float64": float(np.finfo(np.float64).max),
    "float32": float(np.finfo(np.float32).max),
    "float16": 65504.0,
    "bfloat16": 3.3895e38,
}
Run = Callable[..., Outcome]


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_type_is_told_by_its_bits(dtype: str) -> None:
    for sign in (1, -1):
        array = np.full(37, sign * LARGEST[dtype])
        assert all_finite(cast(array, "float64", dtype), dtype)
        for number in NUMBERS:
            wrong = array.copy()
            wrong[5] = number
            assert not all_finite(cast(wrong, "float64", dtype), dtype)
    assert all_finite(cast(np.empty(0), "float64", dtype), dtype)
    assert all_finite(cast(np.zeros((4, 6)), "float64", dtype)[:, ::2], dtype)


def test_a_number_may_lie_across_two_chunks() -> None:
    class File:
        """A file that holds one tensor in segments, as a pickle may."""

        path = Path("file")

        def __init__(self, array: Any) -> None:
            raw = array.view(np.uint8)
            self.tensors = {"t": type("Info", (), {"dtype": "float32"})}
            self.chunks = lambda name: [raw[:6], raw[6:7], raw[7:]]

    array = np.ones(4, np.float32)
    assert b"".join(c.tobytes() for c in finite_chunks(File(array), "t")) == array.tobytes()  # type: ignore[arg-type]
    for place in range(4):
        wrong = array.copy()
        wrong[place] = np.inf
        with pytest.raises(BadInput, match="t holds NaN"):
            list(finite_chunks(File(wrong), "t"))  # type: ignore[arg-type]


@pytest.fixture(params=NUMBERS)
def broken(original: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    folder = shutil.copytree(original, tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    name = next(name for name in weights if name.endswith("h.2.attn.c_attn.weight"))
    weights[name][7, 50] = request.param
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("dialect", ["torch", "paddle", "megatron", "mindspore", "modelscope", "fleetx"])
@pytest.mark.parametrize("dtype", [None, "float16", "bfloat16"])
def test_convert_names_the_tensor(broken: Path, dialect: str, dtype: str | None, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"model.safetensors: .*h\.2\.attn\.c_attn\.weight holds NaN or inf"):
        convert_checkpoint(Conversion(broken, tmp_path / "out", dialect, dtype=dtype))
    assert not (tmp_path / "out").exists()


def test_every_command_refuses(broken: Path, run: Run, tmp_path: Path) -> None:
    for words in (
        ["inspect", broken],
        ["convert", broken, tmp_path / "out", "--to", "torch"],
        ["convert", broken, tmp_path / "out", "--to", "torch", "--no-verify"],
    ):
        assert_refused(run(*words), 5, "h.2.attn.c_attn.weight holds NaN", tmp_path)


def test_the_same_weights_as_numbers_convert(original: Path, run: Run, tmp_path: Path) -> None:
    assert run("inspect", original)[0] == 0
    assert run("convert", original, tmp_path / "out", "--to", "torch")[0] == 0
