"""From a configuration file of another system to a RunSpec, with what became of every key."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from gptbridge_specs.elsewhere import foreign_file, system_of
from gptbridge_specs.errors import SpecError
from gptbridge_specs.imports import fleetx, megatron, mindformers, modelscope, paddlenlp
from gptbridge_specs.imports.arguments import read_arguments
from gptbridge_specs.imports.files import flattened, read_json_mapping, read_with_bases
from gptbridge_specs.imports.reading import Facts, Line, Reading
from gptbridge_specs.imports.rows import System
from gptbridge_specs.loading import build, load_model
from gptbridge_specs.overrides import apply_overrides, parse_override
from gptbridge_specs.run import RunSpec
from gptbridge_specs.yaml_files import read_text

_YAML: Mapping[str, System] = {one.SYSTEM.title: one.SYSTEM for one in (fleetx, mindformers)}
_HUGGING_FACE = "Hugging Face"
_LISTS = (megatron.SYSTEM, paddlenlp.SYSTEM)


@dataclass(frozen=True, slots=True)
class Imported:
    """A RunSpec, and what became of every key of the file that it was read from."""

    system: str
    spec: RunSpec
    lines: tuple[Line, ...]
    origins: Mapping[str, str]  # of each field: the key that decided it
    options: tuple[str, ...]  # of gptbridge train, for what is no field of a spec

    def yaml(self) -> str:
        """Return the fields that the configuration decides, as a file that `gptbridge train` reads."""
        content = self.spec.model_dump(mode="json", exclude_unset=True)
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def import_file(path: Path, overrides: Sequence[str] = (), facts: Facts = Facts()) -> Imported:  # noqa: B008
    """Return the run that a foreign configuration describes.

    `overrides` set fields of the spec; those that begin with none of its sections set a key of the file, or
    a variable of the script, before it is read. SpecError with a line for every key that is unknown, cannot
    be, or needs a fact.
    """
    ours = [text for text in overrides if parse_override(text)[0][0] in RunSpec.model_fields]
    system, given, launched = _read(path, [text for text in overrides if text not in ours])
    answered = frozenset(".".join(parse_override(text)[0]) for text in ours)
    reading = Reading(given, system.defaults(), facts, system.also, answered, launched=launched)
    system.read(reading)
    problems = [f"{path}: {problem}" for problem in reading.problems]
    if problems:
        raise SpecError(problems)
    content = _nested(reading.fields)
    if reading.preset is not None:
        content["model"] = {**load_model(reading.preset).model_dump(), **content.get("model", {})}
    spec = build(RunSpec, apply_overrides(content, ours), _origin(path, reading))
    lines = [replace(line, text=line.text or _decided(line.key, reading, spec)) for line in reading.lines]
    return Imported(
        system.title, spec, tuple(lines), dict(reading.origins), tuple(dict.fromkeys(reading.options))
    )


def _decided(key: str, reading: Reading, spec: RunSpec) -> str:
    """Return the fields that a key decides, with their values."""
    own = [name for name, origin in reading.origins.items() if origin == key]
    parts = reading.parts.get(key, ())
    # Of steps and epochs one is decided; what all are without, its default, is not said.
    names = dict.fromkeys((*own, *([part for part in parts if part in reading.fields] or parts)))
    values = {name: reading.preset if name == "model" else _value(spec, name) for name in names}
    return ", ".join(f"{name} = {value}" for name, value in values.items())


def _value(spec: RunSpec, name: str) -> Any:
    value: Any = spec
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _read(path: Path, theirs: Sequence[str]) -> tuple[System, dict[str, Any], int | None]:
    """Return whose the file is, its flat keys, and the devices that its launcher is asked for."""
    text = path.suffix not in (".json", ".yaml", ".yml")
    if text and not read_text(path, "list of arguments").lstrip().startswith("{"):
        return _arguments(path, theirs)
    is_yaml = path.suffix in (".yaml", ".yml")
    content = apply_overrides(read_with_bases(path) if is_yaml else read_json_mapping(path), theirs)
    title = system_of(content)
    if {"init_class", "init_args"} & content.keys() or (
        title == "PaddleNLP" and {"architectures", "hidden_act"} & content.keys()
    ):
        return paddlenlp.MODEL, paddlenlp.flat_model(content, path), None
    if title == "PaddleNLP":
        return paddlenlp.SYSTEM, _as_flags(flattened(content, path)), None
    if title == "ModelScope":
        return modelscope.SYSTEM, modelscope.beside(path, content), None
    if title is None or title not in _YAML:
        if said := foreign_file(content, path) if title == _HUGGING_FACE else None:
            raise SpecError([f"{path}: {said}"])
        systems = "PaddleFleetX, PaddleNLP, MindFormers, ModelScope or Megatron-LM"
        raise SpecError([f"{path}: not a configuration of {systems}"])
    return _YAML[title], flattened(content, path), None


def _as_flags(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as a list of arguments has them, in which True is a flag without a value."""
    return {key: str(value).lower() if isinstance(value, bool) else value for key, value in content.items()}


def _arguments(path: Path, theirs: Sequence[str]) -> tuple[System, dict[str, Any], int | None]:
    variables = {".".join(keys): str(value) for keys, value in map(parse_override, theirs)}
    found = read_arguments(path, variables)
    # each by the signs of its own names
    forms = {megatron.SYSTEM.title: ("_", "-"), paddlenlp.SYSTEM.title: ("-", "_")}
    given = {
        title: {name.replace(*signs): value for name, value in found.flags.items()}
        for title, signs in forms.items()
    }
    known = {one.title: len(given[one.title].keys() & one.actions().keys()) for one in _LISTS}
    system = max(_LISTS, key=lambda one: known[one.title])
    if not known[system.title]:
        raise SpecError([f"{path}: no arguments of {' or '.join(forms)}"])
    return system, given[system.title], _launched(found.launcher)


def _launched(launcher: Mapping[str, Any]) -> int | None:
    """Return the devices that a launcher is asked for: on each node, times nodes; or a list of them."""
    words = {name.replace("-", "_"): value for name, value in launcher.items()}
    listed = words.get("gpus") or words.get("devices")
    each = str(len(str(listed).split(",")) if listed else words.get("nproc_per_node"))
    nodes = str(words.get("nnodes", "1"))
    return int(each) * int(nodes) if each.isdigit() and nodes.isdigit() else None


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return dotted fields as sections, in the order of a RunSpec."""
    content: dict[str, Any] = {}
    for name in sorted(fields, key=lambda name: list(RunSpec.model_fields).index(name.partition(".")[0])):
        *outer, last = name.split(".")
        section = content
        for part in outer:
            section = section.setdefault(part, {})
        section[last] = fields[name]
    return content


def _origin(path: Path, reading: Reading) -> Callable[[Sequence[str]], str]:
    def name(place: Sequence[str]) -> str:
        key = reading.origins.get(".".join(place), "")
        return f"{path}: {key}: " if key else f"{path}: "

    return name
