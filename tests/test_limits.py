"""The page of limits says what the code does."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "limits.md"
ROWS = re.findall(r"^\| .*? \| ([\d,]+)[^|]* \| `([\w.]+)` \|$", PAGE.read_text(), re.MULTILINE)


@pytest.mark.parametrize(("number", "place"), ROWS, ids=[place for _, place in ROWS])
def test_a_limit_is_what_the_page_says(number: str, place: str) -> None:
    module, _, name = place.rpartition(".")
    assert getattr(import_module(module), name) == int(number.replace(",", ""))


def test_the_page_has_rows() -> None:
    assert len(ROWS) > 15
