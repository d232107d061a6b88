"""The presets that come with gptbridge: model sizes and whole recipes, each a YAML file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptbridge_specs.yaml_files import read_mapping

Kind = Literal["models", "runs"]
_FOLDER = Path(__file__).parent / "presets"


@dataclass(frozen=True, slots=True)
class Preset:
    """One named preset. `reproduces` says which published model or recipe it is."""

    kind: Kind
    name: str
    reproduces: str
    content: dict[str, Any]


def preset_names(kind: Kind) -> list[str]:
    """Return the names of all presets of a kind, sorted."""
    return sorted(path.stem for path in (_FOLDER / kind).glob("*.yaml"))


def read_preset(kind: Kind, name: str) -> Preset:
    """Read one preset; `name` is one of `preset_names(kind)`."""
    content = read_mapping(_FOLDER / kind / f"{name}.yaml")
    reproduces = " ".join(str(content.pop("reproduces")).split())
    return Preset(kind, name, reproduces, content)


def all_presets() -> Iterator[Preset]:
    """Yield every model preset, then every run preset."""
    kinds: tuple[Kind, ...] = ("models", "runs")
    for kind in kinds:
        for name in preset_names(kind):
            yield read_preset(kind, name)
