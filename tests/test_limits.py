"""The page of limits says what the code does."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "limits.md"
ROWS = re.findall(r"^\| .*? \| ([\d,]+)[^|]* \| `([\w.]+)` \|$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("number", "place"), ROWS, ids=[place for _, place in ROWS])
def test_a_limit_is_what_the_page_says(number: str, place: str) -> None:
    module, _, name = place.rpartition(".")
    assert getattr(import_module(module), name) == int(number.replace(",", ""))


def test_the_page_has_rows() -> None:
    assert len(ROWS) > 15


NAME = re.compile(
    r"^(_?(?:\w+_)?(?:LIMIT|MAX_\w+|LARGEST(?:_\w+)?|LONGEST|EXPANSION))(?:: \w+)? = [\w(]", re.MULTILINE
)


def test_every_limit_is_on_the_page() -> None:
    places = {place for _, place in ROWS}
    for folder in ("gptbridge", "specs/gptbridge_specs", "cli/gptbridge_cli"):
        for path in (ROOT / folder).rglob("*.py"):
            module = ".".join(path.relative_to((ROOT / folder).parent).with_suffix("").parts)
            missing = {f"{module}.{name}" for name in NAME.findall(path.read_text())} - places
            assert not missing, missing


def test_what_is_called_a_limit_is_found() -> None:
    assert NAME.findall("_MAX_ROWS = 9\nLONGEST: int = 1 << 3\nOTHER = 3\nA_LIMIT = 2") == [
        "_MAX_ROWS",
        "LONGEST",
        "A_LIMIT",
    ]
