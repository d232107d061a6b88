"""One writer a format: the tensors of a file, in the structure that its dialect expects."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from gptbridge.weights.formats import Entry
from gptbridge.weights.formats.safetensors import write_safetensors
from gptbridge_specs import ModelSpec

Writer = Callable[[Path, Sequence[Entry], str, ModelSpec], None]


def _safetensors(path: Path, entries: Sequence[Entry], dialect: str, model: ModelSpec) -> None:
    write_safetensors(path, entries)


WRITERS: Mapping[str, Writer] = {"safetensors": _safetensors}
