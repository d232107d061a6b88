"""From fields to a ModelSpec, with an error that names the field or the file's own key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from gptbridge.errors import BadInput, UsageError, printable
from gptbridge_specs import ModelSpec

_NEEDED = ("vocab_size", "hidden_size", "num_layers", "max_position_embeddings")


def build_model(fields: Mapping[str, Any], where: object) -> ModelSpec:
    """Return the ModelSpec of complete fields; UsageError names what is missing or cannot be."""
    for name in _NEEDED:
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
        field, problem, value = _first(error)
        raise BadInput((f"{field} is {value}: " if field else "") + problem, where=where) from error


def strict_model(fields: Mapping[str, Any], keys: Mapping[str, str], where: object) -> ModelSpec:
    """Return the ModelSpec of fields that are of the right types; BadInput names one by its key of `keys`."""
    try:
        return ModelSpec.model_validate(dict(fields), strict=True)
    except ValidationError as error:
        field, problem, _ = _first(error)
        raise BadInput(f"{keys.get(field, field) or 'sizes'}: {problem}", where=where) from error


def _first(error: ValidationError) -> tuple[str, str, str]:
    """Return the field of the first error, what is wrong, and the value."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"])
    return field, printable(str(first["msg"]).removeprefix("Value error, ")), printable(first["input"])
