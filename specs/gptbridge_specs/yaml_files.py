"""YAML from strangers: plain data only, bounded in size, depth and expansion."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import yaml

from gptbridge_specs.errors import SpecError

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_NODES = 20_000  # after every alias and merge key has been expanded

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _SpecLoader(_Loader):  # type: ignore[misc, valid-type]
    """PyYAML's safe loader with YAML 1.2's numbers and booleans, and no duplicate keys."""

    # Built anew: PyYAML's own table follows YAML 1.1, where `no` is False and `1e-3` is text.
    yaml_implicit_resolvers: ClassVar[dict[str, list[Any]]] = {}
    # What a tag may ask for: no set, no bytes, no date, which no spec has.
    yaml_constructors: ClassVar[dict[str | None, Any]] = {
        tag: made
        for tag, made in _Loader.yaml_constructors.items()
        if tag is None or tag.rpartition(":")[2] in {"null", "bool", "int", "float", "str", "seq", "map"}
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem="a key must be plain text", problem_mark=key.start_mark)
            if key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands twice", problem_mark=key.start_mark
                )
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep=deep)
        return mapping


def _resolver(tag: str, pattern: str, first: list[str]) -> None:
    _SpecLoader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(pattern), first)


_resolver("bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF"))
_resolver("null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""])
_resolver("int", r"^[-+]?[0-9]+$", list("-+0123456789"))
_resolver("float", r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$", list("-+.0123456789"))
_resolver("float", r"^(?:[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$", list("-+."))
_resolver("merge", r"^<<$", ["<"])


# LibYAML's words for a problem, where they do not say it
_WORDS = {
    "found character that cannot start any token": "a tab, or one of @ ` %, cannot begin a value: "
    "indent with spaces, put text in quotes",
    "but found another document": "a second document begins here: a spec is one",
}


def _check_depth(text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise yaml.YAMLError(f"more than {MAX_DEPTH} levels deep")


def _expanded(node: yaml.Node, sizes: dict[int, int], open_nodes: set[int]) -> int:
    """Count the nodes that `node` stands for once aliases are written out."""
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) in open_nodes:
        raise yaml.MarkedYAMLError(problem="an alias contains itself", problem_mark=node.start_mark)
    if id(node) not in sizes:
        open_nodes.add(id(node))
        pairs = isinstance(node, yaml.MappingNode)
        children = [part for pair in node.value for part in pair] if pairs else node.value
        sizes[id(node)] = 1 + sum(_expanded(child, sizes, open_nodes) for child in children)
        open_nodes.discard(id(node))
    return sizes[id(node)]


def _parse(text: str) -> Any:
    _check_depth(text)
    loader = _SpecLoader(text)
    try:
        node = loader.get_single_node()
        if node is None or node.value in ([], "", "~", "null"):
            raise yaml.YAMLError(
                "is empty: a spec has sections, such as those of gptbridge spec show gpt2-tiny"
            )
        if _expanded(node, {}, set()) > MAX_NODES:
            raise yaml.YAMLError(f"more than {MAX_NODES} entries once its aliases are written out")
        return loader.construct_document(node)
    finally:
        loader.dispose()


def line_of(path: Path, place: Sequence[str]) -> int | None:
    """Return the line of the key that `place` leads to, or of the last one on the way that is there."""
    node, line = yaml.compose(path.read_text("utf-8-sig"), Loader=_Loader), None
    for name in place:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((key, value) for key, value in pairs if key.value == name), None)
        if found is None:
            break
        node, line = found[1], found[0].start_mark.line + 1
    return line


def read_text(path: Path, what: str, hint: str = "") -> str:
    """Return the text of a regular file; SpecError for none, over 1 MB, which no `what` is, or not UTF-8."""
    try:
        if not path.is_file():
            raise SpecError([f"{path}: {'not a file' if path.exists() else 'no such file'}{hint}"])
        with path.open("rb") as file:
            data = file.read(min(path.stat().st_size, MAX_BYTES + 1))  # of /proc, a read may wait for ever
        if len(data) > MAX_BYTES:
            raise SpecError([f"{path}: larger than 1 MB, which no {what} is"])
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError([f"{path}: not UTF-8 text (byte {error.start})"]) from error
    except OSError as error:
        raise SpecError([f"{path}: {error.strerror}"]) from error


def read_mapping(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises SpecError naming the file and line: not a regular file, over 1 MB, not UTF-8, not YAML,
    several documents, tags, duplicate keys, too deep, too large when expanded, not a mapping.
    """
    try:
        content = _parse(read_text(path, "spec", ". gptbridge spec list shows the presets"))
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        words = _WORDS.get(str(error.problem), error.problem)
        raise SpecError([f"{path}{line}: {words}"]) from error
    except (yaml.YAMLError, ValueError) as error:
        raise SpecError([f"{path}: {' '.join(str(error).split())}"]) from error
    if not isinstance(content, dict):
        raise SpecError([f"{path}: a spec is a mapping of sections, not a {type(content).__name__}"])
    return content
