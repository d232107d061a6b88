"""From a dialect's configuration to what it declares about the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gptbridge.errors import BadInput, UsageError, printable
from gptbridge.files import read_json
from gptbridge.weights.configs.tables import TABLES, TOKEN_KEYS, ConfigTable
from gptbridge.weights.hf_config import from_hf_config
from gptbridge_specs import ModelSpec, SpecError
from gptbridge_specs.yaml_files import read_mapping

_LARGEST = 1 << 31


@dataclass(frozen=True, slots=True)
class Declared:
    """The fields of a ModelSpec that some source states, and which source that is.

    `num_labels` and `lora_alpha` belong to a classifier's head and to LoRA, if there are such; `tokens`
    holds the ids of special tokens by the keys in TOKEN_KEYS.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    where: str = "nothing"
    num_labels: int | None = None
    lora_alpha: float | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)

    def merged(self, stronger: Declared) -> Declared:
        """Return the fields of both, `stronger` winning where they meet."""
        return Declared({**self.fields, **stronger.fields}, stronger.where if stronger.fields else self.where)


def read_config_file(path: Path, dialect: str) -> Declared:
    """Return what a configuration file of `dialect` declares; BadInput for one of something else."""
    if path.suffix in (".yaml", ".yml"):
        try:
            content = read_mapping(path)
        except SpecError as error:
            raise BadInput(str(error)) from error
    else:
        content = read_json(path)
    return declared_by(content, dialect, path)


def declared_by(content: Mapping[str, Any], dialect: str, where: object) -> Declared:
    """Return what the configuration `content` declares."""
    if dialect in ("torch", "gptbridge"):
        fields = from_hf_config(content, where=where).model_dump()
        labels = _num_labels(content, ("num_labels",), where)
        return Declared(fields, str(where), labels, tokens=_tokens(content))
    table = TABLES[dialect]
    model = _section(_unwrapped(content), table, where)
    _refuse_other_architectures(model, table, where)
    fields = dict(table.assumed)
    for name, keys in table.keys.items():
        stated = [model[key] for key in keys if model.get(key) is not None]
        if stated:
            fields[name] = stated[0]
    if dialect == "mindspore" and "expand_ratio" in model and "hidden_size" in fields:
        fields["ffn_hidden_size"] = _whole(model["expand_ratio"], where) * _whole(
            fields["hidden_size"], where
        )
    fields["activation"] = _activation(model, table, dialect, where)
    labels = _num_labels(model, table.labels, where)
    tokens = _tokens(model) if table.tokens else {}
    return Declared(fields, str(where), labels, _lora_alpha(model, where), tokens)


def assumed_by(dialect: str) -> Declared:
    """Return what the software of `dialect` takes for granted where no file says anything."""
    table = TABLES.get(dialect)
    return Declared(dict(table.assumed) if table else {})


def _tokens(model: Mapping[str, Any]) -> dict[str, int]:
    """Return the special tokens that are plain ids; some files hold lists, which we do not carry."""
    return {key: model[key] for key in TOKEN_KEYS if type(model.get(key)) is int and model[key] >= 0}


def _num_labels(model: Mapping[str, Any], keys: tuple[str, ...], where: object) -> int | None:
    """Return the number of classes, or of their names, which is how Hugging Face writes it."""
    names = model.get("id2label")
    counts = [model[key] for key in keys if model.get(key) is not None]
    counts += [len(names)] if isinstance(names, dict) else []
    return _whole(counts[0], where) if counts else None


def _lora_alpha(model: Mapping[str, Any], where: object) -> float | None:
    """Return lora_alpha of MindFormers' pet_config."""
    settings = model.get("pet_config")
    alpha = settings.get("lora_alpha") if isinstance(settings, dict) else None
    return None if alpha is None else finite_number(alpha, "lora_alpha", where)


def _unwrapped(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the keys of PaddleNLP's older form, {"init_args": [{...}], "init_class": ...}, flat."""
    flat = dict(content)
    while isinstance(arguments := flat.pop("init_args", None), list):
        inner = arguments[0] if arguments else None
        if not isinstance(inner, dict):
            break
        flat.update(inner)
    return flat


def _section(content: Mapping[str, Any], table: ConfigTable, where: object) -> Mapping[str, Any]:
    for name in table.section:
        inner = content.get(name)
        if not isinstance(inner, dict):
            raise BadInput(f"has no section {'.'.join(table.section)}", where=where)
        content = inner
    return content


def _refuse_other_architectures(model: Mapping[str, Any], table: ConfigTable, where: object) -> None:
    for key, only in table.fixed.items():
        if key in model and model[key] is not None and model[key] != only:
            raise BadInput(f"{key} is {printable(model[key])}", where=where, allowed=str(only))


def _activation(model: Mapping[str, Any], table: ConfigTable, dialect: str, where: object) -> str:
    if dialect == "megatron":
        # It computes tanh GELU when it fuses bias and GELU or is told to.
        return "gelu_tanh" if model.get("openai_gelu") or model.get("bias_gelu_fusion", True) else "gelu_erf"
    if dialect == "modelscope":
        return "gelu_tanh" if model.get("bias_gelu_fusion", True) else "gelu_erf"
    for key in table.activation_keys:
        spelled = model.get(key)
        if spelled is None:
            continue
        if not isinstance(spelled, str) or spelled not in table.gelu:
            raise BadInput(f"{key} is {printable(spelled)!r}", where=where, allowed=", ".join(table.gelu))
        return table.gelu[spelled]
    return table.default_activation


def finite_number(value: Any, name: str, where: object) -> float:
    """Return `value`, the field `name`, if it is a number of any use; BadInput otherwise."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= _LARGEST:
        raise BadInput(f"{name} is {printable(value, 60)}", where=where, allowed="a number")
    return float(value)


def _whole(value: Any, where: object) -> int:
    if type(value) is not int or abs(value) > _LARGEST:
        raise BadInput(f"{printable(value, 40)} is not a whole number of any use", where=where)
    return value


def build_model(fields: Mapping[str, Any], where: object) -> ModelSpec:
    """Return the ModelSpec of complete fields; UsageError names what is missing or cannot be."""
    needed = ("vocab_size", "hidden_size", "num_layers", "max_position_embeddings")
    for name in needed:
        if name not in fields:
            raise BadInput(f"neither the files nor the tensors say {name}", where=where)
    if "num_attention_heads" not in fields:
        raise UsageError(
            "the number of attention heads is in no file beside the tensors",
            where=where,
            hint="Give --num-attention-heads N, or --model PRESET|FILE",
        )
    try:
        return ModelSpec.model_validate(dict(fields))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        value = f"{field} is {printable(first['input'])}: " if field else ""
        problem = str(first["msg"]).removeprefix("Value error, ")
        raise BadInput(value + printable(problem), where=where) from error
