"""What inspection says of a token dataset that may be damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptbridge.data.inspection import DatasetFacts, inspect_dataset
from gptbridge.errors import BadInput

DOCUMENTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12]]


def refusal(path: Path | str) -> str:
    """Return the line that `path` is refused with, reading all of it where it opens."""
    with pytest.raises(BadInput) as caught:
        inspect_dataset(str(path))
    line = str(caught.value)
    assert caught.value.exit_code == 5
    assert line.isprintable()
    assert len(line) < 700
    return line


def facts_or_refusal(path: Path) -> DatasetFacts | str:
    try:
        return inspect_dataset(str(path))
    except BadInput as error:
        return str(error)
