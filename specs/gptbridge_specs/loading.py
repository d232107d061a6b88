"""From a preset's name or a YAML file, plus overrides, to a valid spec, and back to YAML."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from gptbridge_specs.elsewhere import foreign_file, preset_instead, range_hint, typed_instead, value_instead
from gptbridge_specs.errors import SpecError, suggestion
from gptbridge_specs.fields import part_in
from gptbridge_specs.model import ModelSpec
from gptbridge_specs.overrides import apply_overrides
from gptbridge_specs.parallel import laid_out
from gptbridge_specs.presets import Kind, preset_names, read_preset
from gptbridge_specs.run import RunSpec
from gptbridge_specs.yaml_files import line_of, read_mapping

DEFAULT_RUN = "gpt2-tiny"
_Spec = TypeVar("_Spec", bound=BaseModel)


def load_run(
    name_or_file: str = DEFAULT_RUN, overrides: Sequence[str] = (), devices: int | None = None
) -> RunSpec:
    """Return the run that a preset or a YAML file describes, with `overrides` applied.

    The name of a model preset is the default run with that model. A file may name a run preset to
    start from (`preset: NAME`), and its `model` may be the name of a model preset or a mapping with a
    `preset` key. Of `devices` in all, parallel.data takes what is left. Raises SpecError with every problem.
    """
    content = apply_overrides(_with_model(_read(name_or_file, "runs", ())), overrides)
    return build(RunSpec, laid_out(_with_model(content), devices), _origin(name_or_file, overrides))


def load_run_of(
    model: ModelSpec, run: str | RunSpec | None, overrides: Sequence[str] = (), devices: int | None = None
) -> RunSpec:
    """Return the run that a preset, file or spec describes, with `model` where that sets no field of it.

    Without `run` it is the default one. Raises SpecError with every problem.
    """
    if isinstance(run, RunSpec):
        content, origin = run.model_dump(exclude_unset=True), _nowhere
    else:
        content = _with_model(_read(run or DEFAULT_RUN, "runs", ()))
        origin = _origin(run or DEFAULT_RUN, overrides)
    own = content.get("model", {}) if run else {}
    content = apply_overrides({**content, "model": {**model.model_dump(), **own}}, overrides)
    return build(RunSpec, laid_out(_with_model(content), devices), origin)


def recipe_of(name_or_file: str) -> str | None:
    """Return the run preset that a name or file means or starts from; None: none but the default."""
    names = preset_names("runs")
    if name_or_file not in names and Path(name_or_file).is_file():
        name_or_file = str(_read_file(Path(name_or_file)).get("preset"))
    return name_or_file if name_or_file in names and name_or_file != DEFAULT_RUN else None


def load_model(name_or_file: str, overrides: Sequence[str] = ()) -> ModelSpec:
    """Return the model of a model preset, a run preset or a YAML file (with or without `model:`)."""
    models = preset_names("models")
    kind: Kind = "models" if name_or_file in models or name_or_file not in preset_names("runs") else "runs"
    content = _read(name_or_file, kind, ())
    if "model" in content:
        content = _with_model(content)["model"]
    return build(ModelSpec, apply_overrides(content, overrides), _origin(name_or_file, overrides))


def load_named(name_or_file: str, overrides: Sequence[str] = ()) -> RunSpec | ModelSpec:
    """Return the model of a model preset, or the run of anything else."""
    is_model = name_or_file in preset_names("models") and name_or_file not in preset_names("runs")
    return load_model(name_or_file, overrides) if is_model else load_run(name_or_file, overrides)


Origin = Callable[[Sequence[str]], str]  # where a field was given, to stand before what is wrong with it
_nowhere: Origin = lambda place: ""  # noqa: E731


def build(spec: type[_Spec], content: Mapping[str, Any], origin: Origin = _nowhere) -> _Spec:
    """Validate `content`; raise SpecError with one line for each problem."""
    try:
        return spec.model_validate(content)
    except ValidationError as error:
        found = error.errors(include_url=False)
        lines = [origin([str(p) for p in one["loc"]]) + _explain(spec, dict(one)) for one in found]
        raise SpecError(list(dict.fromkeys(lines))) from error


def dump_yaml(spec: BaseModel) -> str:
    """Return the complete spec as YAML that `load_run` reads back to an equal one."""
    return yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _origin(name_or_file: str, overrides: Sequence[str]) -> Origin:
    """Return what names file and line of a field that a file gives and no override changes."""
    path = Path(name_or_file)
    changed = [text.partition("=")[0].strip().split(".") for text in overrides]

    def name(place: Sequence[str]) -> str:
        if any(list(place)[: len(keys)] == keys for keys in changed):
            return ""
        line = line_of(path, place)
        return f"{path}:{line}: " if line else f"{path}: "

    is_file = name_or_file not in (*preset_names("runs"), *preset_names("models"))
    return name if is_file else _nowhere


def _read_file(path: Path) -> dict[str, Any]:
    """Return the content of a spec's file; another system's configuration is refused with what to type."""
    if path.suffix == ".sh":
        raise SpecError(
            [f"{path}: a script, not a spec: gptbridge spec import {path} --output run.yaml makes one"]
        )
    content = read_mapping(path)
    if foreign := foreign_file(content, path):
        raise SpecError([f"{path}: {foreign}"])
    return content


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except OSError:  # too long a name
        return False


def _read(name_or_file: str, kind: Kind, chain: tuple[str, ...]) -> dict[str, Any]:
    """Return the content of a preset or file on top of the preset that it starts from."""
    if name_or_file in chain:
        raise SpecError([f"{name_or_file}: presets that start from each other: {' -> '.join(chain)}"])
    if name_or_file in preset_names(kind):
        content = read_preset(kind, name_or_file).content
    elif kind == "runs" and name_or_file in preset_names("models"):
        content = {"model": name_or_file}
    elif Path(name_or_file).suffix in (".yaml", ".yml") or _is_file(name_or_file):
        content = _read_file(Path(name_or_file))
    elif "=" in name_or_file:
        name, _, value = name_or_file.partition("=")
        typed = typed_instead(name, value) or f"-o {name_or_file}"
        raise SpecError([f"{name_or_file}: a field is set with -o. Did you mean {typed}?"])
    else:
        names = [*preset_names(kind), *preset_names("models")]
        what = "model preset" if kind == "models" else "preset or YAML file"
        meant = preset_instead(name_or_file, names)
        near = f" Did you mean {meant}?" if meant else ""
        raise SpecError([f"{name_or_file}: no such {what}.{near} gptbridge spec list shows the presets"])
    content.pop("reproduces", None)
    base = content.pop("preset", None)
    if base is None:
        return content
    return _merged(_with_model(_read(str(base), kind, (*chain, name_or_file))), content)


def _merged(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in top.items():
        below = result.get(key)
        both = isinstance(below, dict) and isinstance(value, dict) and "preset" not in value
        result[key] = _merged(below, value) if both else value  # type: ignore[arg-type]
    return result


def _with_model(content: dict[str, Any]) -> dict[str, Any]:
    """Return `content` with the name of a model preset replaced by its fields."""
    model = content.get("model")
    if isinstance(model, str):
        return {**content, "model": _read(model, "models", ())}
    if isinstance(model, dict) and "preset" in model:
        own = {key: value for key, value in model.items() if key != "preset"}
        return {**content, "model": {**_read(str(model["preset"]), "models", ()), **own}}
    return content


# pydantic's words for a problem, by its type, where ours are shorter
_WORDS = {
    "int_parsing": "not a whole number",
    "int_from_float": "not a whole number",
    "int_type": "not a whole number",
    "float_parsing": "not a number",
    "float_type": "not a number",
    "finite_number": "not a finite number",
    "bool_parsing": "neither true nor false",
    "string_type": "not a text",
    "tuple_type": "not a list, such as [A, B]",
    "list_type": "not a list, such as [A, B]",
    "model_type": "not a section of fields",
}


def _explain(spec: type[BaseModel], problem: dict[str, Any]) -> str:
    """Turn one pydantic problem into a line: field, value and what is wrong, or the nearest name."""
    place = [str(part) for part in problem["loc"]]
    field = ".".join(place)
    if problem["type"] == "extra_forbidden":
        return f"{field}: unknown key.{_nearest_key(spec, place, problem['input'])}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{field}: {message}" if place else message
    value = repr(problem["input"])
    shown = value if len(value) <= 60 else value[:57] + "..."
    if problem["type"] in _WORDS:
        fields = ", ".join(_fields_at(spec, place)) if problem["type"] == "model_type" else ""
        return f"{field}: {shown} is {_WORDS[problem['type']]}" + (
            f"; {field} has: {fields}" if fields else ""
        )
    meant = range_hint(field)
    if problem["type"] == "literal_error":
        meant = value_instead(problem["input"], re.findall("'([^']*)'", message))
    return f"{field}: {shown}: {message[:1].lower()}{message[1:]}{meant}"


def _nearest_key(spec: type[BaseModel], place: Sequence[str], value: object) -> str:
    """Return the key that was meant: a sibling, the same key of another section, or what there is."""
    *outer, name = place
    section = "".join(f"{part}." for part in outer)
    siblings = _fields_at(spec, outer)
    homes = [f"{part}.{name}" for part in _fields_at(spec, []) if name in _fields_at(spec, [part])]
    if typed := typed_instead(name, value):
        return f" {typed}" if " " in typed.removeprefix("-o ") else f" Did you mean {typed}?"
    if near := suggestion(name, siblings):
        return near.replace("mean ", f"mean {section}", 1)
    if homes:
        return f" Did you mean {homes[0]}?"
    return f" {section[:-1] or 'A run'} has: {', '.join(siblings)}" if siblings else ""


def _fields_at(spec: type[BaseModel], place: Sequence[str]) -> list[str]:
    for name in place:
        field = spec.model_fields.get(name)
        inner = part_in(field.annotation) if field else None
        if inner is None:
            return []
        spec = inner
    return list(spec.model_fields)
