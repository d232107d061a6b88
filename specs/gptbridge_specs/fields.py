"""Every field of a spec, as a table to read: name, what it takes, default, meaning."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from gptbridge_specs.base import Part

_PLAIN = {int: "integer", float: "number", str: "text", bool: "true or false", NoneType: "null"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


@dataclass(frozen=True, slots=True)
class Described:
    """One field: `name` as -o takes it, the rest as text."""

    name: str
    takes: str
    default: str
    meaning: str


def describe_fields(part: type[Part], prefix: str = "") -> Iterator[Described]:
    """Yield the fields of `part` and of the parts in it, in the order of the spec."""
    for name, field in part.model_fields.items():
        inner = part_in(field.annotation)
        if inner is None or field.default is None:
            yield Described(prefix + name, _takes(field), _default(field), field.description or "")
        if inner is not None:
            yield from describe_fields(inner, f"{prefix}{name}.")


def markdown_table(rows: Iterable[Described]) -> str:
    """Return `rows` as a table for docs/fields.md."""
    lines = ["| field | default | takes | meaning |", "|---|---|---|---|"]
    lines += [f"| `{row.name}` | `{row.default}` | {row.takes} | {row.meaning} |" for row in rows]
    return "\n".join(lines)


def part_in(annotation: Any) -> type[Part] | None:
    """Return the section that a field holds, if it holds one; a list of sections is none."""
    is_union = get_origin(annotation) in (Union, UnionType)
    for kind in (annotation, *(get_args(annotation) if is_union else ())):
        if isinstance(kind, type) and issubclass(kind, Part):
            return kind
    return None


def _takes(field: FieldInfo) -> str:
    bounds = [
        f"{words} {getattr(limit, name)}"
        for limit in field.metadata
        for name, words in _BOUNDS.items()
        if hasattr(limit, name)
    ]
    is_union = get_origin(field.annotation) in (Union, UnionType)
    shown = [_kind(kind) for kind in (get_args(field.annotation) if is_union else [field.annotation])]
    shown[0] += " " + ", ".join(bounds) if bounds else ""
    return " or ".join(shown)


def _kind(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(str(value) for value in inner)
    if origin is tuple:
        return f"list of {_kind(inner[0])}" if Ellipsis in inner else f"{len(inner)} {_kind(inner[0])}s"
    return _PLAIN.get(annotation, "section")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True, validated_data={})
    return value if isinstance(value, str) else json.dumps(value)
