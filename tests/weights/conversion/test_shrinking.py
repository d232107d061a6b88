"""Sources that become shorter while they are read: an error with the file's name, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gptbridge.errors import BadInput
from gptbridge.weights.conversion.convert import Conversion, convert_checkpoint
from gptbridge.weights.formats import open_weights
from gptbridge.weights.formats.output import new_file
from gptbridge.weights.formats.shrinking import refuse_shrunk
from gptbridge.weights.opening import open_checkpoint
from tests.weights.conversion.checkpoints import HEADS, converted, weights_of

SOURCES = {
    "torch": "model.safetensors",
    "megatron": "release/mp_rank_00/model_optim_rng.pt",
    "paddle": "model_state.pdparams",
    "mindspore": "gpt2.ckpt",
    "dcp": "__0_0.distcp",
}


@pytest.mark.parametrize("size", [0, 100, 200_000])
@pytest.mark.parametrize("to", ["torch", "megatron", "paddle"])
@pytest.mark.parametrize("dialect", SOURCES)
def test_a_conversion_ends_with_the_name_of_a_file_that_shrinks(
    dialect: str, to: str, size: int, original: Path, tmp_path: Path
) -> None:
    source = converted(original, tmp_path / "source", dialect)
    file = source / SOURCES[dialect]

    def shrink(done: int, whole: int, name: str) -> None:
        if file.stat().st_size > size:
            os.truncate(file, size)

    with pytest.raises(BadInput, match=f"^{file}: became shorter while it was read$"):
        convert_checkpoint(Conversion(source, tmp_path / "out", to, HEADS), shrink)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source"]
    refuse_shrunk()  # nothing is left over for whoever reads next
    assert weights_of(converted(original, tmp_path / "again", "torch"))


def test_an_open_checkpoint_tells_it_when_a_weight_is_read(original: Path, tmp_path: Path) -> None:
    source = converted(original, tmp_path / "source", "torch")
    with open_checkpoint(source) as opened:
        assert opened.arrays["wte.weight"].any()
        os.truncate(source / "model.safetensors", 4096)
        with pytest.raises(BadInput, match=r"model\.safetensors: became shorter while it was read"):
            opened.arrays["h.3.mlp.c_fc.weight"]


def test_a_write_from_behind_the_end_is_told_too(original: Path, tmp_path: Path) -> None:
    source = converted(original, tmp_path / "source", "torch") / "model.safetensors"
    with open_weights(source) as weights:
        (array,) = weights.chunks("wpe.weight")
        os.truncate(source, 0)
        with (
            pytest.raises(BadInput, match="became shorter while it was read"),
            new_file(tmp_path / "out") as out,
        ):
            out.write(array.data)
    assert not (tmp_path / "out").exists()


def test_other_memory_ends_the_process_as_ever(original: Path) -> None:
    """The control: a map that is nobody's of ours still dies of the signal."""
    program = f"""
import mmap, os, tempfile
from pathlib import Path
from gptbridge.weights.formats import open_weights
with open_weights({str(original / "model.safetensors")!r}), tempfile.TemporaryFile() as file:
    file.truncate(8192)
    memory = mmap.mmap(file.fileno(), 8192)
    file.truncate(0)
    memory[0]
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert done.returncode == -signal.SIGBUS


def test_what_was_read_before_stays_as_it_was(original: Path, tmp_path: Path) -> None:
    source = converted(original, tmp_path / "source", "torch")
    with open_checkpoint(source) as opened:
        before = opened.arrays["wte.weight"]
        os.truncate(source / "model.safetensors", 0)
        assert np.array_equal(before, weights_of(original)["wte.weight"])
