"""A configuration file as flat keys: YAML with the files that it builds on, and JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gptbridge_specs.errors import SpecError
from gptbridge_specs.yaml_files import MAX_DEPTH, read_mapping, read_text

_MAX_BASES = 8  # files that build on each other
BASE, INHERITED = "_base_", "_inherited_"


def read_with_bases(path: Path, chain: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the content of a YAML file on top of the one that its `_base_` names, relative to itself.

    Maps are merged key by key; one with `_inherited_: false` stands alone. SpecError for files that build
    on each other in a circle, too deep, or outside the first one's folder.
    """
    real = path.resolve()
    if real in chain:
        raise SpecError([f"{path}: {BASE}: the files build on each other in a circle"])
    if len(chain) > _MAX_BASES:
        raise SpecError([f"{path}: {BASE}: more than {_MAX_BASES} files build on each other"])
    folder = (chain[0] if chain else real).parent
    if not real.is_relative_to(folder):
        raise SpecError([f"{path}: {BASE}: lies outside {folder}. Copy it there and name the copy"])
    content = read_mapping(path)
    base = content.pop(BASE, None)
    if base is None:
        return _alone(content)
    if not isinstance(base, str):
        raise SpecError([f"{path}: {BASE} is {base!r}, and not the name of a file"])
    return _on_top(read_with_bases(path.parent / base, (*chain, real)), content)


def _on_top(below: Mapping[str, Any], content: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in content.items():
        under = result.get(key)
        if isinstance(value, dict) and value.get(INHERITED, True) and isinstance(under, dict):
            result[key] = _on_top(under, value)
        else:
            result[key] = value
    return _alone(result)


def _alone(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content without the words that say how it is merged."""
    return {
        key: _alone(value) if isinstance(value, dict) else value
        for key, value in content.items()
        if key != INHERITED
    }


def read_json_mapping(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; SpecError names line and character of what is none."""
    try:
        content = json.loads(read_text(path, "configuration"), object_pairs_hook=once)
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}: character {error.colno}"
        raise SpecError([f"{where}: not JSON: {error.msg}. Comments (#) are none"]) from error
    except (RecursionError, ValueError) as error:
        raise SpecError([f"{path}: not plain JSON: {error}"]) from error
    if not isinstance(content, dict):
        raise SpecError([f"{path}: a configuration is an object, not a {type(content).__name__}"])
    return content


def once(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return pairs as a mapping; ValueError for a key that stands twice."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"the key {key!r} stands twice")
        result[key] = value
    return result


def flattened(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the dotted keys of `content`, of the file `path`, with their values."""
    try:
        return once(flat(content))
    except ValueError as error:
        raise SpecError([f"{path}: {error}"]) from error


def flat(content: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield dotted keys with their values; the maps in a list are numbered from 0."""
    if depth > MAX_DEPTH:
        raise SpecError([f"{prefix[:60]}: more than {MAX_DEPTH} levels deep"])
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        if isinstance(value, dict) and value:
            yield from flat(value, f"{name}.", depth + 1)
        else:
            yield name, None if value in ("None", "") else value
