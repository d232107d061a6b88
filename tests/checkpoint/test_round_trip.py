"""What is written is what is read, bit for bit; and Hugging Face reads it too."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from gptbridge import reference
from gptbridge.checkpoint.locating import locate
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.checkpoint.tensor_files import TensorFiles, open_tensors
from gptbridge.errors import BackendBroken, BadInput
from gptbridge.testing.cases import moments, weights
from gptbridge.weights.canonical.arrays import CanonicalArrays
from gptbridge.weights.formats import open_weights
from gptbridge.weights.layouts.arrays import Read
from gptbridge.weights.opening import open_checkpoint
from gptbridge.weights.shards import from_arrays
from gptbridge_specs import ModelSpec
from tests.checkpoint.conftest import TOKENIZER, opened_run, spec_of, state_of, whole_shards, writer
from tests.weights.conversion.checkpoints import hugging_face_shapes, weights_of
from tests.weights.conversion.test_vectors import VECTORS


def write_tensors(folder: Path, stem: str, model: ModelSpec, sources: Mapping[str, Read], **how: Any) -> None:
    files = TensorFiles(stem, model, tuple(sources), **how)
    files.create(folder)
    files.write(folder, {end: whole_shards(model, read) for end, read in sources.items()})


@settings(max_examples=30, deadline=None)
@given(
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    vocabulary=st.integers(1, 9),
    tied=st.booleans(),
    shard_bytes=st.integers(1, 3000),
)
def test_tensors_survive_any_sharding(
    tmp_path_factory: pytest.TempPathFactory,
    layers: int,
    heads: int,
    vocabulary: int,
    tied: bool,
    shard_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("tensors")
    model = ModelSpec(
        num_layers=layers,
        num_attention_heads=heads,
        hidden_size=2 * heads,
        vocab_size=vocabulary,
        max_position_embeddings=4,
        tie_word_embeddings=tied,
    )
    sources = {".exp_avg": weights(model, 1), ".exp_avg_sq": weights(model, 2)}
    reads = {end: from_arrays(model, arrays) for end, arrays in sources.items()}
    write_tensors(folder, "moments", model, reads, shard_bytes=shard_bytes)
    with ExitStack() as stack:
        assert_the_same(open_tensors(folder, "moments", model, stack, *sources), sources, heads)
    for shard in folder.glob("*.safetensors"):
        assert shard.stat().st_size < 8 + 400 * 24 + shard_bytes or len(open_weights(shard).tensors) == 1


def assert_the_same(found: Mapping[str, CanonicalArrays], sources: Mapping[str, Any], heads: int) -> None:
    """What was read is what was written, whole and in a slice."""
    for end, arrays in sources.items():
        assert list(found[end]) == list(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[end][name], array)
    name, whole = "h.0.attn.k.weight", sources[".exp_avg"]["h.0.attn.k.weight"]
    box = {"i": (1, 2 * heads), "m": (heads - 1, heads), "d": (0, 1)}
    np.testing.assert_array_equal(found[".exp_avg"].read(name, box), whole[1:, 2 * heads - 2 : 2 * heads - 1])


def test_on_disk_it_is_hugging_faces_layout(store: CheckpointStore) -> None:
    """q, k and v of weights and of moments lie side by side in one matrix, in this order."""
    spec = spec_of()
    with (
        open_weights(store.path(20) / "model.safetensors") as files,
        open_weights(store.path(20) / "optimizer.safetensors") as moment_files,
    ):
        assert list(files.tensors) == list(hugging_face_shapes(spec.model))
        assert {name: info.shape for name, info in files.tensors.items()} == hugging_face_shapes(spec.model)
        for held, arrays, end in (
            (files, weights(spec.model, 20), ""),
            (moment_files, moments(spec.model, 20), ".exp_avg"),
            (moment_files, moments(spec.model, 20), ".exp_avg_sq"),
        ):
            for kind in ("weight", "bias"):
                parts = [arrays[f"h.1.attn.{part}.{kind}{end}"] for part in "qkv"]
                found = held.read(f"h.1.attn.c_attn.{kind}{end}")
                np.testing.assert_array_equal(found, np.concatenate(parts, -1))
                assert not np.array_equal(found, np.concatenate(parts[::-1], -1))


def test_a_checkpoint_from_before_is_read_and_written_byte_for_byte(tmp_path: Path) -> None:
    """A run of this software that ended when canonical names still held q, k and v together."""
    (folder,) = (VECTORS / "run" / "checkpoints").iterdir()
    with opened_run(VECTORS / "run") as checkpoint:
        arrays, model = checkpoint.weights.arrays, checkpoint.state.spec.model
        sources = {f".{kind}": moments.read for kind, moments in checkpoint.moments.items()}
        write_tensors(tmp_path, "model", model, {"": checkpoint.weights.read})
        write_tensors(tmp_path, "optimizer", model, sources)
        for name in ("model.safetensors", "optimizer.safetensors"):
            assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
        swapped = {**arrays, "h.0.attn.q.weight": arrays["h.0.attn.k.weight"]}
    (tmp_path / "model.safetensors").unlink()
    write_tensors(tmp_path, "model", model, {"": from_arrays(model, swapped)})
    assert (tmp_path / "model.safetensors").read_bytes() != (folder / "model.safetensors").read_bytes()


def test_a_slice_of_another_shape_is_named(tmp_path: Path) -> None:
    model = spec_of().model
    arrays = weights(model)
    for name in ("wte.weight", "h.1.attn.v.bias"):
        wrong = {**arrays, name: arrays[name][:-1]}
        sources = {"": lambda name, box: wrong[name]}  # noqa: B023  # it is called before the next turn
        with pytest.raises(BackendBroken, match=f"{name} has shape"):
            write_tensors(tmp_path, name, model, sources)


def test_a_checkpoint_reads_back_bit_for_bit(store: CheckpointStore) -> None:
    spec = spec_of()
    with opened_run(store.path(20)) as checkpoint:
        assert checkpoint.weights.model.ffn_size == spec.model.ffn_size
        assert checkpoint.state == state_of(spec, 20)
        held = {f"{n}.{kind}": a for kind, arrays in checkpoint.moments.items() for n, a in arrays.items()}
        for stored, written in (
            (checkpoint.weights.arrays, weights(spec.model, 20)),
            (held, moments(spec.model, 20)),
        ):
            assert set(stored) == set(written)
            for name, array in written.items():
                assert stored[name].dtype == np.float32
                np.testing.assert_array_equal(stored[name], array)
        assert checkpoint.weights.tokenizer().identity == TOKENIZER.identity


def test_a_run_folder_means_its_newest_checkpoint(store: CheckpointStore) -> None:
    assert locate(store.folder.parent, warn=pytest.fail) == store.path(20)
    assert locate(store.path(10), warn=pytest.fail) == store.path(10)


@pytest.mark.parametrize(
    ("hide", "named"),
    [
        ({"config.json"}, "config.json"),
        ({"model.safetensors"}, "model.safetensors"),
        ({"manifest.json"}, "manifest.json"),
        ({"optimizer.safetensors"}, "optimizer.safetensors"),
    ],
)
def test_a_missing_file_is_named(store: CheckpointStore, hide: set[str], named: str) -> None:
    for name in hide:
        (store.path(20) / name).unlink()
    with pytest.raises(BadInput, match=named) as caught, opened_run(store.path(20)):
        pytest.fail("it was opened")
    assert caught.value.exit_code == 5


# Loads each folder named on the command line and writes the logits of the first 16 bytes.
HUGGING_FACE = """
import sys, numpy, torch, transformers
for folder in sys.argv[1:]:
    model = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = model(torch.arange(32).reshape(2, 16)).logits
    numpy.save(folder + "/logits.npy", logits.numpy())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("def f(x):")["input_ids"] == list(b"def f(x):"), tokenizer("def f(x):")
"""

MODELS: dict[str, dict[str, Any]] = {
    "tanh": {"activation": "gelu_tanh"},
    "erf": {"activation": "gelu_erf", "layernorm_epsilon": 1e-3},
    "quick": {"activation": "quick_gelu", "ffn_hidden_size": 20},
    "untied": {"tie_word_embeddings": False},
}


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of every kind of model, with the logits that transformers gives for them."""
    folder = tmp_path_factory.mktemp("hugging_face")
    for name, model in MODELS.items():
        CheckpointStore(folder / name).save(1, writer(spec_of(**model), 1))
    folders = [str(folder / name / "step-00000001") for name in MODELS]
    done = subprocess.run(
        [sys.executable, "-c", HUGGING_FACE, *folders], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", MODELS)
def test_transformers_opens_a_checkpoint_and_gives_the_same_logits(hugging_face: Path, name: str) -> None:
    spec = spec_of(**MODELS[name])
    theirs = np.load(hugging_face / name / "step-00000001/logits.npy")
    tokens = np.arange(32, dtype=np.int32).reshape(2, 16)
    ours = reference.logits(spec.model, weights(spec.model, 1), tokens)
    scale = np.abs(ours).max()
    assert np.abs(theirs - ours).max() < 1e-5 * scale
    other = spec_of(**{**MODELS[name], "activation": "gelu_erf" if name != "erf" else "quick_gelu"})
    wrong = reference.logits(other.model, weights(spec.model, 1), tokens)
    assert np.abs(theirs - wrong).max() > 1e-4 * scale, "the comparison cannot tell activations apart"


def test_a_folder_of_transformers_opens_for_generation(hugging_face: Path, tmp_path: Path) -> None:
    """With the prefix, mask buffers and a stored tied head that transformers has written over the years."""
    spec = spec_of(**MODELS["tanh"])
    source = hugging_face / "tanh/step-00000001"
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    arrays = {f"transformer.{name}": array for name, array in weights_of(source).items()}
    arrays["transformer.h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.float32)
    arrays["lm_head.weight"] = arrays["transformer.wte.weight"]
    save_file(arrays, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path) as opened:
        assert sorted(opened.arrays) == sorted(weights(spec.model, 1))
        np.testing.assert_array_equal(opened.arrays["wte.weight"], arrays["transformer.wte.weight"])
    with pytest.raises(BadInput, match="holds weights, not a run"), opened_run(tmp_path):
        pytest.fail("it was opened")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_embd": 24}))
    with pytest.raises(BadInput, match=r"says hidden_size=24, but the tensors say 12"):
        open_checkpoint(tmp_path)
