"""What is written is what is read, bit for bit; and Hugging Face reads it too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptbridge import reference
from gptbridge.checkpoint.reading import find_checkpoint, open_checkpoint
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.checkpoint.tensor_files import write_tensors
from gptbridge.errors import BackendBroken, BadInput
from gptbridge.testing.cases import moments, weights
from gptbridge.weights.formats import open_weights
from tests.checkpoint.conftest import TOKENIZER, spec_of, state_of, writer

NAMES = st.text("abcdefgh.0123456789", min_size=1, max_size=12)
SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.dictionaries(NAMES, SHAPES, min_size=1, max_size=8),
    shard_bytes=st.integers(1, 400),
)
def test_tensors_survive_any_sharding(
    tmp_path_factory: pytest.TempPathFactory,
    shapes: dict[str, tuple[int, ...]],
    shard_bytes: int,
) -> None:
    folder = tmp_path_factory.mktemp("tensors")
    stream = np.random.default_rng(len(shapes))
    arrays = {name: stream.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    write_tensors(folder, "model", shapes, arrays.items(), shard_bytes=shard_bytes)
    index = folder / "model.safetensors.index.json"
    with open_weights(index if index.exists() else folder / "model.safetensors") as files:
        assert set(files.tensors) == set(arrays)
        for name, array in arrays.items():
            np.testing.assert_array_equal(files.read(name), array)
    for shard in folder.glob("*.safetensors"):
        tensors = sum(arrays[name].size > 0 for name in open_weights(shard).tensors)
        assert shard.stat().st_size < 8 + 400 * 8 + shard_bytes or tensors == 1


def test_a_session_that_exports_the_wrong_tensors_is_named(tmp_path: Path) -> None:
    shapes = {"a": (2,), "b": (3,)}
    a, b = np.zeros(2, np.float32), np.zeros(3, np.float32)
    for wrong in (
        [("a", a)],
        [("a", a), ("a", a)],
        [("b", b), ("a", a)],
        [("a", b), ("b", b)],
        [("a", a), ("b", b), ("c", b)],
    ):
        with pytest.raises(BackendBroken):
            write_tensors(tmp_path, "model", shapes, iter(wrong))


def test_a_checkpoint_reads_back_bit_for_bit(store: CheckpointStore) -> None:
    opened = open_checkpoint(store.path(20))
    spec = spec_of()
    assert opened.model == spec.model
    assert opened.state == state_of(spec, 20)
    assert opened.moments is not None
    for stored, written in (
        (opened.weights, weights(spec.model, 20)),
        (opened.moments, moments(spec.model, 20)),
    ):
        assert set(stored) == set(written)
        for name, array in written.items():
            assert stored[name].dtype == np.float32
            np.testing.assert_array_equal(stored[name], array)
    assert opened.tokenizer().identity == TOKENIZER.identity


def test_a_run_folder_means_its_newest_checkpoint(store: CheckpointStore) -> None:
    assert find_checkpoint(store.folder.parent, warn=pytest.fail) == store.path(20)
    assert find_checkpoint(store.path(10), warn=pytest.fail) == store.path(10)


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
    with pytest.raises(BadInput, match=named) as caught:
        open_checkpoint(store.path(20))
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
    arrays = {f"transformer.{name}": array for name, array in weights(spec.model, 1).items()}
    arrays["transformer.h.0.attn.bias"] = np.ones((1, 1, 16, 16), np.float32)
    arrays["lm_head.weight"] = arrays["transformer.wte.weight"]
    shapes = {name: array.shape for name, array in arrays.items()}
    write_tensors(tmp_path, "model", shapes, arrays.items())
    opened = open_checkpoint(tmp_path)
    assert opened.state is None
    assert opened.moments is None
    assert sorted(opened.weights) == sorted(weights(spec.model, 1))
    np.testing.assert_array_equal(opened.weights["wte.weight"], arrays["transformer.wte.weight"])
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_embd": 24}))
    with pytest.raises(BadInput, match=r"wte\.weight has shape \(257, 12\)"):
        open_checkpoint(tmp_path)
