"""A folder for configurations, which is the working folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.specs.imports.reading import Files


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Files:
    monkeypatch.chdir(tmp_path)
    return Files(tmp_path)
