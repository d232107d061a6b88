"""A small asymmetric GPT-2, written in Hugging Face's form by the safetensors package."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from gptbridge.weights.configs.table import ConfigFacts
from gptbridge.weights.conversion.convert import Conversion, convert_checkpoint
from gptbridge.weights.conversion.facts import CheckpointFacts, checkpoint_facts, digest
from gptbridge.weights.conversion.target import Split
from gptbridge.weights.dialects.huggingface import config_of
from gptbridge.weights.formats import Entry, TensorInfo, Tree, open_weights, write_ckpt, write_torch
from gptbridge.weights.opening import Hints, open_checkpoint
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
NO_HINTS = Hints()
HEADS = Hints(model=ConfigFacts({"num_attention_heads": MODEL.num_attention_heads}, "test"))


def random_weights(model: ModelSpec, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights without any symmetry: LayerNorms off 1 and 0, biases not zero."""
    stream = np.random.default_rng(seed)
    weights = {}
    for name, shape in hugging_face_shapes(model).items():
        scale = 0.2 if len(shape) > 1 else 0.05
        base = 1.0 if "ln" in name and name.endswith("weight") else 0.0
        weights[name] = (base + scale * stream.normal(size=shape)).astype(np.float32)
    return weights


def hugging_face_shapes(model: ModelSpec) -> dict[str, tuple[int, ...]]:
    """The tensors of Hugging Face's GPT2Model, and the head of an untied one."""
    h, f = model.hidden_size, model.ffn_size
    linear = {"attn.c_attn": (h, 3 * h), "attn.c_proj": (h, h), "mlp.c_fc": (h, f), "mlp.c_proj": (f, h)}
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (model.vocab_size, h),
        "wpe.weight": (model.max_position_embeddings, h),
    }
    for layer in range(model.num_layers):
        for norm, names in (("ln_1", ("attn.c_attn", "attn.c_proj")), ("ln_2", ("mlp.c_fc", "mlp.c_proj"))):
            shapes |= {f"h.{layer}.{norm}.{kind}": (h,) for kind in ("weight", "bias")}
            for name in names:
                shapes[f"h.{layer}.{name}.weight"] = linear[name]
                shapes[f"h.{layer}.{name}.bias"] = linear[name][1:]
    shapes |= {"ln_f.weight": (h,), "ln_f.bias": (h,)}
    return shapes if model.tie_word_embeddings else {**shapes, "lm_head.weight": (model.vocab_size, h)}


def apart(weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Hugging Face's weights with q, k and v apart, as the canonical ones are."""
    result: dict[str, NDArray[Any]] = {}
    for name, array in weights.items():
        if ".c_attn." in name:
            parts = np.split(array, 3, -1)
            result |= {name.replace("c_attn", x): part for x, part in zip("qkv", parts, strict=True)}
        else:
            result[name] = array
    return result


def together(weights: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Canonical weights with q, k and v in one matrix, as Hugging Face has them."""
    result: dict[str, NDArray[Any]] = {}
    for name, array in weights.items():
        before, part, kind = name.partition(".attn.q.")
        if part:
            parts = [weights[f"{before}.attn.{x}.{kind}"] for x in "qkv"]
            result[f"{before}.attn.c_attn.{kind}"] = np.concatenate(parts, -1)
        elif ".attn.k." not in name and ".attn.v." not in name:
            result[name] = array
    return result


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
    hints: Hints = NO_HINTS,
    **more: Any,
) -> Path:
    """Convert and return the output folder."""
    convert_checkpoint(Conversion(source, output, to, hints, split=Split(tensor, pipeline), **more))
    return output


def digest_of(folder: Path, hints: Hints = NO_HINTS) -> str:
    """The digest of a checkpoint's canonical weights."""
    with open_checkpoint(folder, hints) as opened:
        return digest(opened)


def facts_of(folder: Path, hints: Hints = NO_HINTS) -> CheckpointFacts:
    """What `gptbridge inspect` tells of a checkpoint."""
    with open_checkpoint(folder, hints) as opened:
        return checkpoint_facts(opened)


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


def entries_of(arrays: Mapping[str, NDArray[Any]]) -> list[Entry]:
    """What the writers of all formats take."""
    return [
        (TensorInfo(name, str(array.dtype), array.shape), lambda a=array: [a])  # type: ignore[misc]
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
