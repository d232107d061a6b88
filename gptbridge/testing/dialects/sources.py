"""What the kit converts: small asymmetric models, in files that are written without any dialect's table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.testing import cases
from gptbridge.weights.architecture import LORA_A, LORA_B, layer_of
from gptbridge.weights.dialects.gptbridge import config_of
from gptbridge.weights.formats import TensorInfo, write_safetensors
from gptbridge_specs import ModelSpec

Arrays = Mapping[str, NDArray[np.float32]]

CASES = ("tied", "untied", "classifier", "adapters")
LABELS, RANK, ALPHA = 3, 2, 5.0
TOKENS = {"bos_token_id": 3, "eos_token_id": 4, "pad_token_id": 5}
_SIZES: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 36,
    "num_layers": 2,
    "num_attention_heads": 12,
    "max_position_embeddings": 13,
    "layernorm_epsilon": 1e-3,
    "hidden_dropout_prob": 0.125,
    "attention_probs_dropout_prob": 0.25,
    "initializer_range": 0.03125,
}
_WIDTHS = (84, 72, None)  # no multiple of the hidden width, one, and four times it
_ACTIVATIONS = ("gelu_erf", "gelu_tanh", "quick_gelu")


@dataclass(frozen=True)
class Case:
    """One checkpoint by canonical names, and what goes along with its weights."""

    model: ModelSpec
    arrays: Arrays
    num_labels: int | None = None
    adapters: Arrays = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)


def models(**fields: Any) -> list[ModelSpec]:
    """Return models with `fields`, the most telling sizes first: not every system can be all of them."""
    hidden = fields.get("hidden_size", _SIZES["hidden_size"])
    widths = [fields["ffn_hidden_size"]] if "ffn_hidden_size" in fields else [_WIDTHS[0], 2 * hidden, None]
    kinds = [fields["activation"]] if "activation" in fields else [*_ACTIVATIONS]
    return [
        ModelSpec.model_validate({**_SIZES, **fields, "ffn_hidden_size": width, "activation": kind})
        for width in widths
        for kind in kinds
    ]


def make(model: ModelSpec, kind: str = "tied", zeros: tuple[str, ...] = ()) -> Case:
    """Return a case of one of CASES; the weights in `zeros`, {} standing for the layer, are zeros."""
    model = model.model_copy(update={"tie_word_embeddings": kind != "untied"})
    arrays = cases.weights(model)
    for name in arrays:
        if _template(name) in zeros:
            arrays[name] = np.zeros_like(arrays[name])
    stream = np.random.default_rng(7)
    case = Case(model, arrays, tokens=TOKENS)
    if kind == "classifier":
        score = stream.standard_normal((LABELS, model.hidden_size)).astype(np.float32)
        return replace(case, arrays={**arrays, "score.weight": score}, num_labels=LABELS)
    if kind == "adapters":
        return replace(case, adapters=_adapters(model, stream))
    return case


def _template(name: str) -> str:
    layer = layer_of(name)
    return name if layer is None else name.replace(f"h.{layer}.", "h.{}.", 1)


def _adapters(model: ModelSpec, stream: np.random.Generator) -> Arrays:
    """Return LoRA for q, k and v of the last layer; they share the factor that the input goes through."""
    layer, width = model.num_layers - 1, model.hidden_size
    shared = stream.standard_normal((RANK, width)).astype(np.float32)
    found: dict[str, NDArray[np.float32]] = {}
    for part in "qkv":
        found[f"h.{layer}.attn.{part}{LORA_A}"] = shared
        found[f"h.{layer}.attn.{part}{LORA_B}"] = stream.standard_normal((width, RANK)).astype(np.float32)
    return found


def write(case: Case, folder: Path) -> Path:
    """Write a case as a checkpoint of a run, with tokens and adapters as such a folder has them."""
    folder.mkdir(parents=True)
    config = {**config_of(case.model), **case.tokens}
    if case.num_labels is not None:
        config["id2label"] = {str(label): f"LABEL_{label}" for label in range(case.num_labels)}
    (folder / "config.json").write_text(json.dumps(config))
    _write(folder / "model.safetensors", _joined(case.arrays))
    if case.adapters:
        _write_adapters(case, folder / "adapter")
    return folder


def _joined(arrays: Arrays) -> dict[str, NDArray[np.float32]]:
    """Return the weights with q, k and v of a layer side by side in one matrix."""
    stored: dict[str, NDArray[np.float32]] = {}
    for name, array in arrays.items():
        if ".attn.q." in name:
            parts = [arrays[name.replace(".attn.q.", f".attn.{part}.")] for part in "qkv"]
            stored[name.replace(".attn.q.", ".attn.c_attn.")] = np.concatenate(parts, -1)
        elif ".attn.k." not in name and ".attn.v." not in name:
            stored[name] = array
    return stored


def _write_adapters(case: Case, folder: Path) -> None:
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "fan_in_fan_out": True}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    layer = case.model.num_layers - 1
    outs = [case.adapters[f"h.{layer}.attn.{part}{LORA_B}"] for part in "qkv"]
    prefix = f"base_model.model.transformer.h.{layer}.attn.c_attn"
    factors = {
        f"{prefix}.lora_A.weight": case.adapters[f"h.{layer}.attn.q{LORA_A}"],
        f"{prefix}.lora_B.weight": np.concatenate(outs),
    }
    _write(folder / "adapter_model.safetensors", factors)


def _write(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    infos = {name: TensorInfo(name, "float32", array.shape) for name, array in arrays.items()}
    write_safetensors(path, [(info, partial(_chunks, arrays[name])) for name, info in infos.items()])


def _chunks(array: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return [np.ascontiguousarray(array, "<f4")]
