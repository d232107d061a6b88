"""A configuration as a table, and what is read from one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptbridge.errors import BadInput
from gptbridge.files import read_json
from gptbridge.weights.configs.model import strict_model
from gptbridge.weights.configs.rows import TOKEN_KEYS, Content, Described, Row, Token
from gptbridge_specs import ModelSpec, SpecError
from gptbridge_specs.yaml_files import read_mapping


@dataclass(frozen=True, slots=True)
class ConfigFacts:
    """The fields of a ModelSpec that some source states, and which source that is.

    `num_labels` and `lora_alpha` belong to a classifier's head and to LoRA, if there are such; `tokens`
    holds the ids of special tokens by the keys in TOKEN_KEYS. `assumed` are fields that the source leaves
    open, and what is most likely.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    where: str = "nothing"
    num_labels: int | None = None
    lora_alpha: float | None = None
    tokens: Mapping[str, int] = field(default_factory=dict)
    assumed: Mapping[str, Any] = field(default_factory=dict)

    def merged(self, stronger: ConfigFacts) -> ConfigFacts:
        """Return the fields of both, `stronger` winning where they meet."""
        where = stronger.where if stronger.fields else self.where
        return ConfigFacts({**self.fields, **stronger.fields}, where)


@dataclass(frozen=True)
class ConfigTable:
    """How a dialect writes a model down: one row after the other, in the order of the file.

    `files` are the names that the file may have, the first that exists; a pattern such as `*.yaml` counts
    where a single file matches it. `in_weights` are the keys under which it lies in the file of the weights
    instead: without the first there is none. `section` is where in the file the model stands. `flat` undoes
    an older form of the whole.

    The file of a `complete` table says the whole model: it is checked when it is read, types too, and null
    is no way to leave a key out. `missing` are fields of ModelSpec that the configuration has no place for:
    they are read as ModelSpec has them by default, and a note says so. `unsaid` is what the system takes
    where there is no configuration at all.
    """

    rows: tuple[Row, ...] = ()
    files: tuple[str, ...] = ()
    in_weights: tuple[str, ...] = ()
    section: tuple[str, ...] = ()
    flat: Callable[[Content], Content] = dict
    complete: bool = False
    missing: tuple[str, ...] = ()
    unsaid: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse rows that read the same field, with ValueError."""
        fields = [*self.missing, *(name for row in self.rows for name in row.fields)]
        if twice := {name for name in fields if fields.count(name) > 1}:
            raise ValueError(f"{min(twice)} belongs to two rows")

    def read(self, content: Content, where: object) -> ConfigFacts:
        """Return what `content` says; BadInput, naming the key, for another architecture or nonsense."""
        fields = self._fields(content, where)
        labels, alpha = fields.pop("num_labels", None), fields.pop("lora_alpha", None)
        tokens = {key: fields.pop(key) for key in TOKEN_KEYS if key in fields}
        if self.complete:
            fields = self._checked(fields, where).model_dump()
        return ConfigFacts(fields, str(where), labels, alpha, tokens, self._assumed(content, where))

    def read_file(self, path: Path) -> ConfigFacts:
        """Return what a JSON or YAML file says; BadInput for one of something else."""
        return self.read(_content(path), path)

    def model(self, content: Content, where: object) -> ModelSpec:
        """Return the model that `content`, of a complete table, says; BadInput for any other."""
        return ModelSpec.model_validate(self.read(content, where).fields)

    def write(self, described: Described) -> dict[str, Any]:
        """Return the content to write, in the order of the rows."""
        content: dict[str, Any] = {}
        for row in self.rows:
            content.update(row.write(described))
        for name in reversed(self.section):
            content = {name: content}
        return content

    @property
    def holds_tokens(self) -> bool:
        """The configuration has a place for the ids of special tokens."""
        return any(isinstance(row, Token) for row in self.rows)

    def not_said(self, model: ModelSpec) -> list[str]:
        """Return the fields of `model` that the configuration has no place for, with their values."""
        values = ((name, getattr(model, name)) for name in self.missing)
        return [f"{name}={x}" for name, x in values if x != ModelSpec.model_fields[name].default]

    def not_computed(self, model: ModelSpec) -> list[str]:
        """Return what of `model` the system's own software computes otherwise, whatever the file says."""
        return [difference for row in self.rows if (difference := row.not_computed(model))]

    def _fields(self, content: Content, where: object) -> dict[str, Any]:
        inner = self._section(self.flat(content), where)
        if not self.complete:
            inner = {key: value for key, value in inner.items() if value is not None}
        fields: dict[str, Any] = {}
        for row in self.rows:
            fields.update(row.read(inner, where))
        return fields

    def _assumed(self, content: Content, where: object) -> dict[str, Any]:
        inner = self._section(self.flat(content), where)
        return {name: value for row in self.rows for name, value in row.assumed(inner).items()}

    def _section(self, content: Content, where: object) -> Content:
        for name in self.section:
            inner = content.get(name)
            if not isinstance(inner, dict):
                raise BadInput(f"has no section {'.'.join(self.section)}", where=where)
            content = inner
        return content

    def _checked(self, fields: Mapping[str, Any], where: object) -> ModelSpec:
        keys = {name: row.keys[0] for row in self.rows for name in row.fields}
        return strict_model(fields, keys, where)


def _content(path: Path) -> Content:
    if path.suffix not in (".yaml", ".yml"):
        return read_json(path)
    try:
        return read_mapping(path)
    except SpecError as error:
        raise BadInput(str(error)) from error
