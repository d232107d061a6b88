"""From a ModelSpec to a dialect's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptbridge.errors import UsageError
from gptbridge.weights.configs.tables import TABLES, ConfigTable
from gptbridge.weights.hf_config import to_hf_config
from gptbridge_specs import ModelSpec


def config_content(
    model: ModelSpec,
    dialect: str,
    *,
    num_labels: int | None = None,
    tokens: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Return the model's part of the configuration that `dialect` keeps beside its weights.

    `num_labels` is set for a classifier; `tokens` are the special tokens' ids, by TOKEN_KEYS.
    """
    if dialect in ("torch", "gptbridge"):
        return {**_hugging_face(model, num_labels), **(tokens or {})}
    table = TABLES[dialect]
    unsaid = {name for name, value in table.hard_coded.items() if getattr(model, name) == value}
    content = {
        **table.always,
        **{keys[0]: _value(model, name) for name, keys in table.keys.items() if name not in unsaid},
        **({} if "activation" in unsaid else _activation(model, table, dialect)),
    }
    if num_labels is not None and table.labels:
        content[table.labels[0]] = num_labels
    if table.tokens:
        content.update(tokens or {})
    if dialect == "mindspore":
        content["expand_ratio"] = _expand_ratio(model)
    for name in reversed(table.section):
        content = {name: content}
    return content


def holds_tokens(dialect: str) -> bool:
    """Tell whether a dialect's configuration has a place for the ids of special tokens."""
    return dialect not in TABLES or TABLES[dialect].tokens


def not_computed(model: ModelSpec, dialect: str) -> list[str]:
    """Return what of `model` the dialect's own software does not compute, whatever its configuration says."""
    table = TABLES.get(dialect)
    return [
        f"{dialect} itself always computes {name}={value}, and this model has {getattr(model, name)}"
        for name, value in (table.hard_coded.items() if table else ())
        if getattr(model, name) != value
    ]


def _hugging_face(model: ModelSpec, num_labels: int | None) -> dict[str, Any]:
    content = to_hf_config(model)
    if num_labels is not None:
        names = [f"LABEL_{number}" for number in range(num_labels)]
        content["architectures"] = ["GPT2ForSequenceClassification"]
        content["id2label"] = {str(number): name for number, name in enumerate(names)}
        content["label2id"] = {name: number for number, name in enumerate(names)}
    return content


def _expand_ratio(model: ModelSpec) -> int:
    ratio, rest = divmod(model.ffn_size, model.hidden_size)
    if rest:
        raise UsageError(
            f"the model's ffn_hidden_size is {model.ffn_size}, but MindFormers has whole multiples of "
            f"hidden_size={model.hidden_size} only"
        )
    return ratio


def _value(model: ModelSpec, field: str) -> Any:
    return model.ffn_size if field == "ffn_hidden_size" else getattr(model, field)


def _activation(model: ModelSpec, table: ConfigTable, dialect: str) -> dict[str, Any]:
    tanh = model.activation == "gelu_tanh"
    if dialect == "megatron":
        return {"bias_gelu_fusion": tanh, "openai_gelu": False}
    if dialect == "modelscope":
        return {"bias_gelu_fusion": tanh}
    spelled = next(name for name, ours in table.gelu.items() if ours == model.activation)
    return {table.activation_keys[0]: spelled}
