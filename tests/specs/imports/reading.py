"""Configurations are written and imported; what came of them is compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptbridge_specs import RunSpec, SpecError, load_run
from gptbridge_specs.fields import describe_fields
from gptbridge_specs.imports import Facts, Imported, import_file
from tests.specs.imports.texts import FLEETX_BASE, MODELSCOPE


class Files:
    """Writes configurations and imports them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fleetx(self, top: str, base: str = FLEETX_BASE, **facts: int) -> Imported:
        (self.folder / "base.yaml").write_text(base)
        return self.read("run.yaml", top, **facts)

    def modelscope(
        self, *pairs: tuple[str, Any], model: dict[str, Any] | None = None, **facts: int
    ) -> Imported:
        content = json.loads(json.dumps(MODELSCOPE))
        for place, value in pairs:
            *outer, last = place.split(".")
            section = content
            for name in outer:
                section = section.setdefault(name, {})
            section[last] = value
            if value is None:
                del section[last]
        if model is not None:
            (self.folder / "config.json").write_text(json.dumps(model))
        return self.read("configuration.json", json.dumps(content), **facts)

    def read(self, name: str, text: str, *overrides: str, **facts: int) -> Imported:
        (self.folder / name).write_text(text)
        return import_file(self.folder / name, overrides, Facts(**facts))


def refusal(read: Any, *arguments: Any, **keywords: Any) -> str:
    with pytest.raises(SpecError) as refused:
        read(*arguments, **keywords)
    return str(refused.value)


def value(spec: RunSpec, name: str) -> Any:
    found: Any = spec
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def differing(imported: Imported, preset: str) -> set[str]:
    """Return the fields in which a run differs from a preset, sizes that are left out taken as they count."""
    spec, other = imported.spec, load_run(preset)
    names = {row.name for row in describe_fields(RunSpec)} - {"data.path", "model.ffn_hidden_size"}
    found = {name for name in names if value(spec, name) != value(other, name)}
    assert spec.model.ffn_size == other.model.ffn_size
    if spec.micro_batch_size == other.micro_batch_size:
        found.discard("training.micro_batch_size")
    return found
