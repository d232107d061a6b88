"""A small asymmetric GPT-2, written in Hugging Face's form by the safetensors package."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gptbridge.weights.canonical import parameters
from gptbridge.weights.configs.table import ConfigFacts
from gptbridge.weights.conversion.arrays import digest
from gptbridge.weights.conversion.convert import Request, convert_checkpoint
from gptbridge.weights.conversion.source import Told, open_source
from gptbridge.weights.conversion.target import Split
from gptbridge.weights.dialects.huggingface import config_of
from gptbridge.weights.formats import Entry, TensorInfo, Tree, open_weights, write_ckpt, write_torch
from gptbridge_specs import ModelSpec

MODEL = ModelSpec(
    vocab_size=61,
    hidden_size=48,
    num_layers=4,
    num_attention_heads=4,
    ffn_hidden_size=96,
    max_position_embeddings=20,
    activation="gelu_tanh",
    hidden_dropout_prob=0,
    attention_probs_dropout_prob=0,
)
HEADS = Told(model=ConfigFacts({"num_attention_heads": MODEL.num_attention_heads}, "test"))


def random_weights(model: ModelSpec, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights without any symmetry: LayerNorms off 1 and 0, biases not zero."""
    stream = np.random.default_rng(seed)
    weights = {}
    for parameter in parameters(model):
        scale = 0.2 if parameter.is_matrix else 0.05
        base = 1.0 if "ln" in parameter.name and parameter.name.endswith("weight") else 0.0
        weights[parameter.name] = (base + scale * stream.normal(size=parameter.shape)).astype(np.float32)
    return weights


def write_hugging_face(folder: Path, model: ModelSpec, weights: dict[str, NDArray[np.float32]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config_of(model)))
    (folder / "vocab.json").write_text("{}")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def converted(
    source: Path,
    output: Path,
    to: str,
    tensor: int = 1,
    pipeline: int = 1,
    told: Told | None = None,
    **more: Any,
) -> Path:
    """Convert and return the output folder."""
    convert_checkpoint(Request(source, output, to, told or Told(), split=Split(tensor, pipeline), **more))
    return output


def digest_of(folder: Path, told: Told | None = None) -> str:
    """The digest of a checkpoint's canonical weights."""
    with ExitStack() as stack:
        return digest(open_source(folder, stack, told))


def weights_of(folder: Path) -> dict[str, NDArray[Any]]:
    """What a folder in Hugging Face's form holds, as the safetensors package reads it."""
    return load_file(folder / "model.safetensors")


def assert_identical(found: Mapping[str, NDArray[Any]], expected: Mapping[str, NDArray[Any]]) -> None:
    """The same names, and each the same bits."""
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


def arrays_in(file: Path) -> dict[str, NDArray[Any]]:
    """Copies of all arrays in a file of any format."""
    with open_weights(file) as weights:
        return {name: weights.read(name).copy() for name in weights.tensors}


def entries_of(arrays: Mapping[str, NDArray[np.float32]]) -> list[Entry]:
    """What the writers of all formats take."""
    return [
        (TensorInfo(name, "float32", array.shape), lambda a=array: [a])  # type: ignore[misc]
        for name, array in arrays.items()
    ]


def rewrite_ckpt(path: Path, change: Callable[[dict[str, NDArray[Any]]], object]) -> None:
    """Change the arrays of a .ckpt file."""
    arrays = arrays_in(path)
    change(arrays)
    write_ckpt(path, entries_of(arrays))


def rewrite_torch(path: Path, change: Callable[[dict[Any, Tree]], object]) -> None:
    """Change what a torch file holds beside its arrays."""
    arrays = arrays_in(path)
    with open_weights(path) as weights:
        tree = weights.tree
    assert isinstance(tree, dict)
    change(tree)
    write_torch(path, entries_of(arrays), tree)
