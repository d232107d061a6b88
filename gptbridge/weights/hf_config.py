"""Hugging Face's config.json of a GPT-2, to a ModelSpec and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gptbridge.errors import BadInput, printable
from gptbridge.files import read_json
from gptbridge_specs import ModelSpec

# ModelSpec field -> key of config.json; `ffn_hidden_size` and `n_inner` are null for 4 x hidden_size.
_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "n_embd",
    "num_layers": "n_layer",
    "num_attention_heads": "n_head",
    "ffn_hidden_size": "n_inner",
    "max_position_embeddings": "n_positions",
    "layernorm_epsilon": "layer_norm_epsilon",
    "hidden_dropout_prob": "resid_pdrop",
    "attention_probs_dropout_prob": "attn_pdrop",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_word_embeddings",
}
# What transformers assumes for a key that a config.json leaves out.
_ABSENT: dict[str, Any] = {
    "vocab_size": 50257,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_positions": 1024,
    "activation_function": "gelu_new",
}
_TO_ACTIVATION = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "quick_gelu": "quick_gelu",
}
_FROM_ACTIVATION = {"gelu_tanh": "gelu_new", "gelu_erf": "gelu", "quick_gelu": "quick_gelu"}
# Switches that change the arithmetic: only this value is the model that gptbridge knows.
_FIXED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}


def to_hf_config(model: ModelSpec, *, end_of_text: int | None = None) -> dict[str, Any]:
    """Return the content of the config.json with which GPT2LMHeadModel builds `model`."""
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{key: getattr(model, field) for field, key in _KEYS.items()},
        "embd_pdrop": model.hidden_dropout_prob,
        "activation_function": _FROM_ACTIVATION[model.activation],
        **_FIXED,
        "reorder_and_upcast_attn": False,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "torch_dtype": "float32",
        "use_cache": True,
    }


def from_hf_config(config: Mapping[str, Any], *, where: object = "config.json") -> ModelSpec:
    """Return the model that a GPT-2 config.json describes; BadInput for any other model.

    The embedding dropout (`embd_pdrop`) is not kept where it differs from `resid_pdrop`.
    """
    _refuse_other_models(config, where)
    known = {**_ABSENT, **config}
    if "n_positions" not in config and "n_ctx" in config:
        known["n_positions"] = config["n_ctx"]
    fields: dict[str, Any] = {field: known[key] for field, key in _KEYS.items() if key in known}
    fields["activation"] = _TO_ACTIVATION[str(known["activation_function"])]
    try:
        return ModelSpec.model_validate(fields, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        problem = str(first["msg"]).removeprefix("Value error, ")
        raise BadInput(f"{_KEYS.get(field, field) or 'sizes'}: {printable(problem)}", where=where) from error


def read_hf_config(path: Path) -> ModelSpec:
    """Return the model that the file `path` describes."""
    return from_hf_config(read_json(path), where=path)


def _refuse_other_models(config: Mapping[str, Any], where: object) -> None:
    kind = config.get("model_type", "gpt2")
    if kind != "gpt2":
        raise BadInput(f"model_type is {printable(kind)!r}", where=where, allowed="gpt2")
    for key, only in _FIXED.items():
        if config.get(key, only) != only:
            raise BadInput(f"{key} is {printable(config[key])}", where=where, allowed=str(only).lower())
    activation = str(config.get("activation_function", "gelu_new"))
    if activation not in _TO_ACTIVATION:
        raise BadInput(
            f"activation_function is {printable(activation)!r}",
            where=where,
            allowed=", ".join(_TO_ACTIVATION),
        )
