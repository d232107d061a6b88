"""A path where nothing is gets a next step: the name that was meant, or where to look."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptbridge.data.dataset import open_dataset
from gptbridge.data.sources import find_sources
from gptbridge.errors import BadInput
from gptbridge.files import nearby


def test_the_nearest_name_is_offered(tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    assert nearby(tmp_path / "corpsu") == f"Did you mean {tmp_path / 'corpus'}?"
    assert nearby(tmp_path / "zzz") == "Check the path"
    assert nearby(tmp_path / "gone" / "corpus") == f"There is no folder {tmp_path / 'gone'}"


def test_a_relative_path_is_told_from_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert nearby(Path("zzz")) == f"Check the path: it is taken from {tmp_path}"


def test_missing_text_and_datasets_say_it(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("text")
    with pytest.raises(BadInput, match=r"corpsu.txt: No such file or directory\. Did you mean .*corpus.txt"):
        find_sources([str(tmp_path / "corpsu.txt")])
    with pytest.raises(BadInput, match=r"no such token dataset .*There is no folder .*gone"):
        open_dataset(str(tmp_path / "gone" / "set"))


def test_text_in_the_place_of_tokens_is_said_to_be_text(tmp_path: Path) -> None:
    for name, hinted in (("pairs.jsonl", True), ("pairs.bak", False)):
        (tmp_path / name).write_text("{}")
        with pytest.raises(BadInput, match="no token dataset here") as refused:
            open_dataset(str(tmp_path / name))
        assert ("task.name=instruction" in str(refused.value)) == hinted
