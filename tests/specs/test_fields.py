"""The table of fields is complete, and the page has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptbridge_specs import RunSpec
from gptbridge_specs.fields import describe_fields, markdown_table
from gptbridge_specs.loading import build
from gptbridge_specs.overrides import apply_overrides

PAGE = Path(__file__).parents[2] / "docs" / "fields.md"


def leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_field_is_there_with_its_meaning() -> None:
    rows = list(describe_fields(RunSpec))
    names = [row.name for row in rows]
    assert len(set(names)) == len(names)
    whole = RunSpec.model_validate({"task": {"lora": {}}})
    assert set(leaves(whole.model_dump(mode="json"))) == set(names) - {"task.lora"}
    assert all(row.meaning and row.takes for row in rows)


def test_the_defaults_written_there_are_the_defaults() -> None:
    rows = [row for row in describe_fields(RunSpec) if not row.name.startswith("task.lora.")]
    overrides = [f"{row.name}={row.default}" for row in rows]
    assert build(RunSpec, apply_overrides({}, overrides)) == RunSpec()
    assert build(RunSpec, apply_overrides({}, [*overrides, "training.seed=7"])) != RunSpec()


def test_the_page_has_the_table() -> None:
    table = PAGE.read_text().partition("\n| ")[2]
    assert "| " + table == markdown_table(describe_fields(RunSpec)) + "\n", (
        "write it again: gptbridge spec fields --markdown"
    )
