"""A preparation touches no file but its own, and a kill at its very end loses nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptbridge.data.prepare import TextOptions, prepare
from gptbridge.errors import UsageError
from tests.data.prepared import as_bytes, read_dataset, whole


class Killed(BaseException):
    """What a kill is like: nothing after it runs."""


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("some text")
    return str(tmp_path / "in")


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "my"


def put_files(prefix: Path, *names: str) -> None:
    for name in names:
        path = Path(f"{prefix}.{name}")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(f"mine: {name}".encode())


@pytest.mark.parametrize(
    "names",
    [
        ("bin", "idx"),
        ("bin",),
        ("idx",),
        ("json",),
        ("tokenizer/notes.txt",),
        ("tokenizer",),
        ("partial/notes.txt",),
        ("partial/tokens.bin",),
        ("partial/dataset.json",),
        ("partial",),
    ],
)
def test_what_somebody_else_wrote_is_kept_unless_told(
    text: str, prefix: Path, names: tuple[str, ...]
) -> None:
    put_files(prefix, *names)
    before = whole(prefix)
    with pytest.raises(UsageError, match=rf"my\.{names[0].partition('/')[0]}.*--overwrite"):
        prepare([text], "byte", prefix)
    assert whole(prefix) == before
    prepare([text], "byte", prefix, overwrite=True)
    assert read_dataset(prefix) == as_bytes(["some text"])
    assert not prefix.with_name("my.partial").exists()


@pytest.mark.parametrize(
    "content",
    [
        "{}",
        '{"sources": 3}',
        '{"sources": [3]}',
        '{"sources": [], "tokens": "many"}',
        '{"sources": [{"path": "a", "bytes": 9}], "tokens": 0, "documents": 1}',
        "[]",
    ],
)
def test_a_json_file_of_something_else_is_kept(content: str, text: str, prefix: Path) -> None:
    prepare([text], "byte", prefix)
    Path(f"{prefix}.json").write_text(content)
    before = whole(prefix)
    with pytest.raises(UsageError, match="exists already"):
        prepare([text], "byte", prefix)
    assert whole(prefix) == before


LINKS: dict[str, Callable[[Path, Path], object]] = {
    "symbolic": lambda path, target: path.symlink_to(target),
    "hard": lambda path, target: path.hardlink_to(target),
}


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize(
    "name",
    ["lock", "plan.json", "plan.json.new", "tokens.bin", "lengths.bin", "journal.jsonl", "dataset.idx"],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_links_in_the_partial_folder_are_not_followed(
    text: str, prefix: Path, tmp_path: Path, kind: str, name: str, overwrite: bool
) -> None:
    leave_partial(text, prefix)
    precious = tmp_path / "precious"
    precious.write_text("precious")
    partial = prefix.with_name("my.partial")
    (partial / name).unlink(missing_ok=True)
    LINKS[kind](partial / name, precious)
    if overwrite:
        prepare([text], "byte", prefix, overwrite=True)
        assert read_dataset(prefix) == as_bytes(["some text"])
    else:
        with pytest.raises(UsageError, match="--overwrite"):
            prepare([text], "byte", prefix)
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("name", ["lock", "plan.json.new", "tokens.bin"])
def test_a_folder_where_a_file_goes_is_not_a_preparations(text: str, prefix: Path, name: str) -> None:
    leave_partial(text, prefix)
    place = prefix.with_name("my.partial") / name
    place.unlink(missing_ok=True)
    place.mkdir()
    with pytest.raises(UsageError, match="--overwrite"):
        prepare([text], "byte", prefix)


@pytest.mark.parametrize("ending", ["partial", "tokenizer", "bin", "json"])
def test_an_output_that_is_a_link_is_not_followed(
    text: str, prefix: Path, tmp_path: Path, ending: str
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("precious")
    prefix.with_name(f"my.{ending}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="--overwrite"):
        prepare([text], "byte", prefix)
    prepare([text], "byte", prefix, overwrite=True)
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["precious"]
    assert read_dataset(prefix) == as_bytes(["some text"])


def test_a_pipe_in_the_partial_folder_is_refused(text: str, prefix: Path) -> None:
    leave_partial(text, prefix)
    partial = prefix.with_name("my.partial")
    (partial / "tokens.bin").unlink()
    os.mkfifo(partial / "tokens.bin")
    with pytest.raises(UsageError, match=r"tokens\.bin"):
        prepare([text], "byte", prefix)


def test_an_input_is_never_an_output(prefix: Path) -> None:
    path = prefix.with_name("my.txt")
    path.write_text("text")
    prefix.with_name("my.bin").symlink_to(path)
    with pytest.raises(UsageError, match="is an input"):
        prepare([str(path)], "byte", prefix, overwrite=True)
    assert path.read_text() == "text"


def test_a_whole_dataset_of_the_same_text_is_left_as_it_is(text: str, prefix: Path) -> None:
    content = prepare([text], "byte", prefix)
    before = whole(prefix)
    told: list[str] = []
    assert prepare([text], "byte", prefix, on_problem=told.append) == content
    assert whole(prefix) == before
    assert "made from the same text" in told[0]
    for changed in (TextOptions(append_end_of_text=True), TextOptions(document_separator="")):
        with pytest.raises(UsageError, match="exists already"):
            prepare([text], "byte", prefix, changed)


def leave_partial(text: str, prefix: Path) -> None:
    """Leave the folder of a preparation that was killed before its end."""
    with pytest.MonkeyPatch.context() as patch:
        kill_at(1, patch)
        with pytest.raises(Killed):
            prepare([text], "byte", prefix)


def kill_at(count: int, patch: pytest.MonkeyPatch) -> None:
    """Die at the change number `count` of the names in a folder, after the last token is written."""
    left = iter(range(count, -1, -1))

    def dying(change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **settings: Any) -> Any:
            if next(left, 0) <= 1 and "publish" in callers():
                raise Killed
            return change(*arguments, **settings)

        return changed

    for place, name in ((Path, "replace"), (Path, "unlink"), (Path, "rmdir"), (shutil, "rmtree")):
        patch.setattr(place, name, dying(getattr(place, name)))


def callers() -> set[str]:
    import inspect

    return {frame.function for frame in inspect.stack()}


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_kill_at_the_very_end_is_gone_on_from(text: str, prefix: Path, overwrite: bool) -> None:
    prepare([text], "byte", prefix)
    expected = whole(prefix)
    for count in range(1, 40):
        if not overwrite:
            shutil.rmtree(prefix.parent)
            prefix.parent.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            kill_at(count, patch)
            try:
                prepare([text], "byte", prefix, overwrite=overwrite)
            except Killed:
                pass
            else:
                break
        prepare([text], "byte", prefix, overwrite=overwrite)
        assert whole(prefix) == expected
        assert not prefix.with_name("my.partial").exists()
    assert count > 10
