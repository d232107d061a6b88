"""`-o section.field=value`: change any field of a spec from the command line."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from gptbridge_specs.errors import SpecError

_TEMPLATE = re.compile(r"\{[A-Za-z_]\w*\}")


def parse_override(text: str) -> tuple[list[str], Any]:
    """Return the path and value of one override.

    The value stays text, for the field's own type to convert; `null` is None, and text that
    starts with [ or { is JSON, unless a template's {field} begins it.
    """
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise SpecError([f"-o {text}: write it as section.field=value, such as training.max_steps=100"])
    if value == "null":
        return keys, None
    if value[:1] not in ("[", "{") or _TEMPLATE.match(value):
        return keys, value
    try:
        return keys, json.loads(value)
    except (ValueError, RecursionError) as error:
        raise SpecError([f"-o {text}: the value starts like JSON but is not: {error}"]) from error


def apply_overrides(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `content` with each override set; the last one of a field wins.

    A section's `preset` replaces the section: what it had came from another preset. So does a section
    given whole, of which a name is its preset. They come first, wherever they stand, so that no other
    override is lost.
    """
    result = dict(content)
    parsed = [(text, *parse_override(text)) for text in overrides]
    for text, keys, value in sorted(parsed, key=lambda override: _replaces(override[1]), reverse=True):
        target = result
        for key in keys[:-1]:
            inner = target.get(key)
            if target is result and isinstance(inner, str):
                inner = {"preset": inner}
            if inner is not None and not isinstance(inner, dict):
                raise SpecError([f"-o {text}: {key} is a value, not a section"])
            target[key] = dict(inner or {})
            target = target[key]
        if keys[1:] and _replaces(keys):
            target.clear()
        target[keys[-1]] = value
    return result


def _replaces(keys: Sequence[str]) -> bool:
    """Tell whether an override replaces a section."""
    return len(keys) == 1 or keys[-1] == "preset"
