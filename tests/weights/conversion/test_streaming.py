"""Whatever way a file holds its tensors, the bytes are the same and memory stays bounded."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge.weights.formats import open_weights
from gptbridge.weights.formats.segments import Latin1Segment
from tests.weights.conversion.checkpoints import arrays_in, assert_identical, converted, digest_of, weights_of

MEGABYTES_ALLOWED = 64


@pytest.mark.parametrize("slice_bytes", [100, 4096, 10_001])
def test_tensors_in_slices(
    slice_bytes: int, original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MindSpore cuts tensors over 512 MiB; here every tensor is cut, between and within heads and rows."""
    monkeypatch.setattr("gptbridge.weights.formats.ckpt_writer.SLICE_BYTES", slice_bytes)
    sliced = converted(original, tmp_path / "sliced", "mindspore", 2)
    with open_weights(sliced / "rank_1" / "gpt2.ckpt") as weights:
        name = "backbone.blocks.1.output.mapping.weight"
        assert len(weights.extents(name) or ()) == -(-weights.tensors[name].nbytes // slice_bytes)
    assert digest_of(sliced) == digest_of(original)
    for dialect, variant in (("megatron", "version-1"), ("paddle", None), ("torch", None)):
        output = converted(sliced, tmp_path / dialect, dialect, variant=variant)
        direct = converted(original, tmp_path / f"{dialect}-direct", dialect, variant=variant)
        for file in (
            file for file in direct.rglob("*") if file.suffix in (".pt", ".pdparams", ".safetensors")
        ):
            assert (output / file.relative_to(direct)).read_bytes() == file.read_bytes()


@pytest.mark.parametrize("fortran", [False, True])
def test_tensors_that_old_pickles_hold_as_text(fortran: bool, original: Path, tmp_path: Path) -> None:
    folder = converted(original, tmp_path / "paddle", "paddle")
    stored = arrays_in(folder / "model_state.pdparams")
    arrays = {name: np.array(array, order="F" if fortran else "C") for name, array in stored.items()}
    (folder / "model_state.pdparams").write_bytes(pickle.dumps(arrays, protocol=2))
    with open_weights(folder / "model_state.pdparams") as weights:
        assert all(weights.extents(name) is None for name in weights.tensors if "linear1.weight" in name)
    assert digest_of(folder) == digest_of(original)
    output = converted(converted(folder, tmp_path / "megatron", "megatron"), tmp_path / "back", "torch")
    assert_identical(weights_of(output), weights_of(original))


def test_text_is_decoded_once_however_often_it_is_read(
    original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each slab of Megatron's qkv asks for all rows of q, of k and of v in turn."""
    folder = converted(original, tmp_path / "paddle", "paddle")
    arrays = arrays_in(folder / "model_state.pdparams")
    (folder / "model_state.pdparams").write_bytes(pickle.dumps(arrays, protocol=2))
    decoded: list[int] = []
    read_into = Latin1Segment.read_into

    def counted(segment: Latin1Segment, start: int, out: NDArray[np.uint8]) -> None:
        decoded.append(len(out))
        read_into(segment, start, out)

    monkeypatch.setattr(Latin1Segment, "read_into", counted)
    monkeypatch.setattr("gptbridge.weights.formats.encoded._UNPACKED_BYTES", 0)
    monkeypatch.setattr("gptbridge.weights.conversion.streaming.SLAB_ITEMS", 1 << 8)
    megatron = converted(folder, tmp_path / "megatron", "megatron")
    assert 0 < sum(decoded) <= sum(array.nbytes for array in arrays.values())
    assert digest_of(megatron) == digest_of(original)


def test_text_that_is_not_transposed_is_decoded_in_parts(original: Path, tmp_path: Path) -> None:
    """An embedding of 24 MB in protocol 2."""
    folder = converted(original, tmp_path / "paddle", "paddle")
    arrays = arrays_in(folder / "model_state.pdparams")
    table = "gpt.embeddings.word_embeddings.weight"
    arrays[table] = np.arange(1 << 17, dtype=np.float32)[:, None] * np.ones(48, np.float32)
    (folder / "model_state.pdparams").write_bytes(pickle.dumps(arrays, protocol=2))
    for name in ("config.json", "model_config.json"):
        (folder / name).write_text(json.dumps({"num_attention_heads": 4}))
    tracemalloc.start()
    try:
        output = converted(folder, tmp_path / "back", "torch")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < arrays[table].nbytes
    assert np.array_equal(weights_of(output)["wte.weight"], arrays[table])


# Prints the most anonymous memory, in MB above what the imports took, of a conversion to each dialect.
MEASURE = """
import json, sys, threading, time
from pathlib import Path
import numpy as np
from gptbridge.weights.conversion.convert import Conversion, convert_checkpoint
from gptbridge.weights.conversion.target import Split
from gptbridge.weights.formats import TensorInfo, write_safetensors
from gptbridge.weights.dialects.huggingface import config_of
from gptbridge_specs import ModelSpec
from tests.weights.conversion.checkpoints import hugging_face_shapes

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

folder = Path(sys.argv[1])
model = ModelSpec(vocab_size=1024, hidden_size=1024, num_layers=1, num_attention_heads=8,
                  ffn_hidden_size=20480, max_position_embeddings=64)
(folder / "in").mkdir()
(folder / "in" / "config.json").write_text(json.dumps(config_of(model)))
row = np.arange(20480, dtype=np.float32)
def chunks(shape):
    return ((row[: shape[-1]] for _ in range(shape[0])) if len(shape) > 1 else [np.resize(row, shape)])
write_safetensors(folder / "in" / "model.safetensors", [
    (TensorInfo(name, "float32", shape), lambda shape=shape: chunks(shape))
    for name, shape in hugging_face_shapes(model).items()
])
before, peaks, done = anonymous(), {}, threading.Event()
def watch():
    while not done.wait(0.002):
        peaks[case] = max(peaks.get(case, 0), anonymous() - before)
case = "start"
watcher = threading.Thread(target=watch)
watcher.start()
for dialect, more in (
    ("megatron", {}), ("mindspore", {"split": Split(2)}), ("fleetx", {"dtype": "bfloat16"})
):
    case = dialect
    convert_checkpoint(Conversion(folder / "in", folder / dialect, dialect, **more))
done.set()
watcher.join()
print(json.dumps(peaks))
"""


@pytest.mark.timeout(120)
def test_memory_is_bounded_whatever_the_model(tmp_path: Path) -> None:
    """160 MB of weights, most of them in two tensors, within 64 MB above what the imports take."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peaks = json.loads(done.stdout)
    assert {"megatron", "mindspore", "fleetx"} <= peaks.keys()
    assert max(peaks.values()) < MEGABYTES_ALLOWED, peaks
