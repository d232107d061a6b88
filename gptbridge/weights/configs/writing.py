"""From a ModelSpec to a dialect's configuration."""

from __future__ import annotations

from typing import Any

from gptbridge.weights.configs.tables import TABLES, ConfigTable
from gptbridge.weights.hf_config import to_hf_config
from gptbridge_specs import ModelSpec


def config_content(model: ModelSpec, dialect: str, *, end_of_text: int | None = None) -> dict[str, Any]:
    """Return the model's part of the configuration that `dialect` keeps beside its weights."""
    if dialect in ("torch", "gptbridge"):
        return to_hf_config(model, end_of_text=end_of_text)
    table = TABLES[dialect]
    content = {**table.always, **{keys[0]: _value(model, name) for name, keys in table.keys.items()}}
    content.update(_activation(model, table, dialect))
    if dialect == "mindspore":
        content["expand_ratio"] = model.ffn_size // model.hidden_size
    for name in reversed(table.section):
        content = {name: content}
    return content


def _value(model: ModelSpec, field: str) -> Any:
    return model.ffn_size if field == "ffn_hidden_size" else getattr(model, field)


def _activation(model: ModelSpec, table: ConfigTable, dialect: str) -> dict[str, Any]:
    tanh = model.activation == "gelu_tanh"
    if dialect == "megatron":
        extra = {"gptbridge_activation": "quick_gelu"} if model.activation == "quick_gelu" else {}
        return {"bias_gelu_fusion": tanh, "openai_gelu": False, **extra}
    if dialect == "modelscope":
        return {"bias_gelu_fusion": tanh}
    spelled = next(name for name, ours in table.gelu.items() if ours == model.activation)
    return {str(table.activation_key): spelled}
