"""Whole or not at all: saving, damage, fallback, retention, leftovers."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import pytest

from gptbridge.checkpoint.state import read_state
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.errors import BadInput, RunFailed
from gptbridge_specs.run import CheckpointSpec
from tests.checkpoint.conftest import spec_of, writer

FILES = (
    "config.json",
    "manifest.json",
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "tokenizer.json",
)


def truncate(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 9 // 10])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    place = random.Random(path.name).randrange(len(content))
    content[place] ^= 0x10
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def swap_for_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncate, flip, remove, empty, swap_for_folder])
@pytest.mark.parametrize("name", FILES)
def test_any_damage_to_any_file_is_seen(store: CheckpointStore, name: str, damage: object) -> None:
    assert callable(damage)
    damage(store.path(20) / name)
    warnings: list[str] = []
    assert store.newest_good(warnings.append) == store.path(10)
    assert len(warnings) == 1
    assert str(store.path(20)) in warnings[0]


def test_undamaged_is_undamaged(store: CheckpointStore) -> None:
    assert store.newest_good(pytest.fail) == store.path(20)


def test_a_checkpoint_with_files_too_many_is_still_good(store: CheckpointStore) -> None:
    (store.path(20) / "notes.txt").write_text("mine")
    assert store.newest_good(pytest.fail) == store.path(20)


def test_all_damaged_is_an_error_and_none_is_none(store: CheckpointStore, tmp_path: Path) -> None:
    assert CheckpointStore(tmp_path / "nowhere").newest_good(pytest.fail) is None
    for step in (10, 20):
        (store.path(step) / "manifest.json").unlink()
    with pytest.raises(BadInput, match="every checkpoint is damaged") as caught:
        store.newest_good(lambda message: None)
    assert str(store.path(20)) in str(caught.value)
    assert str(store.path(10)) not in str(caught.value)
    assert "--run" in str(caught.value)


@pytest.mark.parametrize("files_before", range(7))
def test_a_disk_that_fills_up_leaves_nothing(store: CheckpointStore, files_before: int) -> None:
    before = sorted(path.name for path in store.folder.iterdir())

    def fill(folder: Path) -> None:
        for number in range(files_before):
            (folder / str(number)).write_bytes(b"x")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunFailed, match="No space left on device") as caught:
        store.save(30, fill)
    assert "step-00000030" in str(caught.value)
    assert sorted(path.name for path in store.folder.iterdir()) == before
    assert store.newest_good(pytest.fail) == store.path(20)


def test_saving_again_replaces_a_damaged_one(store: CheckpointStore) -> None:
    truncate(store.path(20) / "model.safetensors")
    store.save(20, writer(spec_of(), 20))
    assert store.newest_good(pytest.fail) == store.path(20)
    assert store.steps() == [10, 20]
    assert len(list(store.folder.iterdir())) == 2


def test_leftovers_of_a_kill_are_never_taken_and_are_cleaned(store: CheckpointStore) -> None:
    writer(spec_of(), 30)(_made(store.folder / ".saving-step-00000030"))
    store.path(10).rename(store.folder / ".removing-step-00000010")
    assert store.newest_good(pytest.fail) == store.path(20)
    store.clean()
    assert [path.name for path in store.folder.iterdir()] == ["step-00000020"]


@pytest.mark.parametrize(
    ("keep", "keep_every", "left"),
    [
        (2, None, [6, 7]),
        (3, None, [5, 6, 7]),
        (2, 3, [3, 6, 7]),
        (2, 1, [1, 2, 3, 4, 5, 6, 7]),
        (9, None, [1, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_retention(tmp_path: Path, keep: int, keep_every: int | None, left: list[int]) -> None:
    store = CheckpointStore(tmp_path)
    for step in range(1, 8):
        store.save(step, lambda folder: _touch(folder / "file"))
        store.prune(CheckpointSpec(keep=keep, keep_every=keep_every))
    assert store.steps() == left
    assert len(list(tmp_path.iterdir())) == len(left)


def test_steps_beyond_eight_digits_are_in_order(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in (99_999_999, 100_000_000):
        store.save(step, lambda folder: _touch(folder / "file"))
    assert store.newest_good(pytest.fail) == store.path(100_000_000)
    store.set_aside_after(store.path(99_999_999))
    assert store.steps() == [99_999_999]


def _touch(path: Path) -> None:
    path.write_bytes(b"x")


def _made(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_strangers_field_moves_no_cursor(store: CheckpointStore) -> None:
    state = store.path(10) / "state.json"
    state.write_text(state.read_text().replace('"tokens"', '"\\u001b[2J": 0, "tokens"', 1))
    with pytest.raises(BadInput, match=r"Extra inputs") as caught:
        read_state(store.path(10))
    assert str(caught.value).isprintable()
