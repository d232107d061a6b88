"""docs/training.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from gptbridge.training.resume import MAY_CHANGE
from gptbridge_specs.run import ScheduleSpec
from tests.training.conftest import kinds_of

TEXT = (Path(__file__).parents[2] / "docs/training.md").read_text()


def rows_after(heading: str) -> list[list[str]]:
    """Return the cells of the first table after `heading`."""
    lines = TEXT.partition(heading)[2].splitlines()
    table: list[str] = []
    for line in lines:
        if line.startswith("|"):
            table.append(line)
        elif table:
            break
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]


def test_what_may_change_is_listed() -> None:
    fields = " ".join(row[0] for row in rows_after("What may change on resume"))
    listed = re.findall(r"`([^`]+)`", fields)
    assert sorted(listed) == sorted(MAY_CHANGE)


def test_every_schedule_is_listed() -> None:
    names = ScheduleSpec.model_json_schema()["properties"]["name"]["enum"]
    assert [row[0].strip("`") for row in rows_after("## Schedules")] == names


def test_every_event_of_a_run_is_listed(torch_run: Path) -> None:
    listed = {row[0].strip("`") for row in rows_after("## Events")}
    assert set(kinds_of(torch_run)) <= listed
