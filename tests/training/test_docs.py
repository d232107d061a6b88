"""docs/training.md says what the code does."""

from __future__ import annotations

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from gptbridge.training.resume import MAY_CHANGE
from gptbridge.training.start import Devices, resolve
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


CLUSTER = (Path(__file__).parents[2] / "docs/cluster.md").read_text()
ON_CLUSTERS = re.findall(r"gptbridge (train fleetx.*?:29500)", CLUSTER, re.DOTALL)


@pytest.mark.parametrize("command", ON_CLUSTERS)
def test_the_recipes_of_clusters_are_runs(command: str) -> None:
    words = shlex.split(re.sub(r"\$[A-Z_]*NODES", "4", command).replace("\\\n", " ").replace("$", ""))
    given = {word: after for word, after in pairwise(words) if word.startswith("--")}
    overrides = [after for word, after in pairwise(words) if word == "-o"]
    devices = Devices(int(given["--devices"]), int(given["--nodes"]), 1, given["--master"])
    spec = resolve(words[1], overrides, Path(given["--run"]), None, None, devices).spec
    assert devices.processes(spec.parallel) == 8


def test_two_recipes_are_read() -> None:
    assert len(ON_CLUSTERS) == 2
