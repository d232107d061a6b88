"""A run writes no file that has another name: a link in its folder leads to somebody else's."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from gptbridge.errors import BadInput, RunFailed, UsageError
from gptbridge.files import write_synced
from gptbridge.plugins.rank import _print_into
from gptbridge.training.events import EventLog, read_events
from gptbridge.training.launch import print_command
from gptbridge.training.run_folder import RunFolder, locked
from gptbridge.training.start import Devices, RunPlan
from gptbridge.training.tensorboard import TensorBoard
from gptbridge_specs import RunSpec, load_run

LINKS: dict[str, Callable[[Path, Path], object]] = {
    "symbolic": lambda path, target: path.symlink_to(target),
    "hard": lambda path, target: path.hardlink_to(target),
}


@pytest.fixture
def precious(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "precious").write_text("precious, without an end of line")
    return tmp_path / "precious"


@pytest.mark.parametrize("kind", LINKS)
@pytest.mark.parametrize("name", [".lock", "events.jsonl", ".spec.yaml.new", ".environment.json.new"])
def test_a_link_in_a_run_folder_is_not_written_through(precious: Path, kind: str, name: str) -> None:
    run = precious.parent / "run"
    LINKS[kind](run / name, precious)
    with pytest.raises(RunFailed, match="it is a link"):
        write_all(run)
    assert precious.read_text() == "precious, without an end of line"


def write_all(run: Path) -> None:
    with locked(run) as folder:
        EventLog(folder.events).close()
        folder.describe(RunSpec(), {})


def test_without_links_all_is_written(tmp_path: Path) -> None:
    for _ in range(2):
        write_all(tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        ".lock", "events.jsonl", "spec.yaml", "environment.json",
    }  # fmt: skip


def test_a_shorter_content_replaces_a_longer_one(tmp_path: Path) -> None:
    write_synced(tmp_path / "file", b"longer")
    write_synced(tmp_path / "file", b"short")
    assert (tmp_path / "file").read_bytes() == b"short"


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.jsonl")
    with pytest.raises(RunFailed, match="regular"):
        EventLog(RunFolder(tmp_path).events)


def test_tensorboard_is_not_written_through_a_link(precious: Path) -> None:
    pytest.importorskip("tensorboardX")
    elsewhere = precious.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "events.out.tfevents.1").write_text("mine")
    (precious.parent / "run" / "tensorboard").symlink_to(elsewhere)
    with pytest.raises(UsageError, match="link"):
        TensorBoard(precious.parent / "run")({"event": "start"})
    assert (elsewhere / "events.out.tfevents.1").read_text() == "mine"


def test_checkpoints_behind_a_link_are_not_touched(precious: Path) -> None:
    """A run removes what a killed one left behind, and old checkpoints: its own alone."""
    elsewhere = precious.parent / "elsewhere"
    left = elsewhere / ".saving-step-00000004"
    left.mkdir(parents=True)
    run = precious.parent / "run"
    (run / "checkpoints").symlink_to(elsewhere)
    with pytest.raises(UsageError, match="link"), locked(run) as folder:
        folder.store.clean()
    assert left.exists()
    (run / "checkpoints").unlink()
    elsewhere.rename(run / "checkpoints")
    with locked(run) as folder:
        folder.store.clean()
    assert not any((run / "checkpoints").iterdir())


@pytest.mark.parametrize("kind", LINKS)
def test_what_a_rank_prints_does_not_go_through_a_link(precious: Path, kind: str) -> None:
    LINKS[kind](precious.parent / "run" / "rank-0.log", precious)
    with pytest.raises(FileExistsError, match="it is a link"):
        _print_into(precious.parent / "run" / "rank-0.log")
    assert precious.read_text() == "precious, without an end of line"


def test_ranks_behind_a_link_are_not_written(precious: Path) -> None:
    run = precious.parent / "run"
    (run / "ranks").symlink_to(precious.parent)
    spec = load_run("gpt2-tiny", ["parallel.data=2", "training.device=cpu"])
    with pytest.raises(UsageError, match="link"):
        print_command(RunPlan(spec, run, devices=Devices(2)), "torch")
    assert not (precious.parent / "request.json").exists()


@pytest.mark.parametrize(
    "line",
    [
        b"[]",
        b"{}",
        b'{"event": ["step"], "step": 1}',
        b'{"event": "resume"}',
        b'{"event": "step", "step": "1"}',
        b'{"event": "step", "step": 9223372036854775808}',
        b'{"event": "step", "step": true}',
        b'{"event": "end", "time": "now"}',
    ],
)
def test_a_line_that_is_no_event_is_named(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "events.jsonl").write_bytes(b'{"event": "end"}\n' + line + b"\n")
    with pytest.raises(BadInput, match="line 2 is no event"):
        read_events(tmp_path / "events.jsonl")


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="a file of Linux")
def test_a_line_without_end_costs_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"event": "end"}\n{"ev')
    EventLog(path).close()  # the control: what a kill leaves
    assert path.read_bytes() == b'{"event": "end"}\n'
    os.truncate(path, 1 << 40)
    for read in (read_events, EventLog):
        with pytest.raises(BadInput, match="too long"):
            read(path)
    path.unlink()
    path.symlink_to("/proc/self/environ")  # as /proc/kmsg, of which reading waits for ever
    with pytest.raises(BadInput, match="a file of the kernel"):
        read_events(path)


def test_a_file_where_the_checkpoints_go_is_refused_before_a_step(precious: Path) -> None:
    run = precious.parent / "run"
    precious.rename(run / "checkpoints")
    with pytest.raises(UsageError, match="is a file"), locked(run):
        pass


def test_links_among_the_checkpoints_are_removed_and_not_followed(precious: Path) -> None:
    folder = precious.parent / "run" / "checkpoints"
    folder.mkdir()
    for left in (".saving-step-00000004", ".replaced-step-00000004", ".removing-step-00000001"):
        (folder / left).symlink_to(precious.parent)
    with locked(folder.parent) as run:
        run.store.clean()
    assert not any(folder.iterdir())
    assert precious.exists()


def replaced(run: Path) -> None:
    run.rename(run.with_name("moved"))
    run.mkdir()


MOVES: dict[str, Callable[[Path], object]] = {
    "renamed": lambda run: run.rename(run.with_name("moved")),
    "removed": shutil.rmtree,
    "another in its place": replaced,
}


@pytest.mark.parametrize("move", MOVES)
def test_a_folder_that_goes_away_ends_the_run(move: str, tmp_path: Path) -> None:
    """The next event says it, and no checkpoint is begun where the folder was."""
    run = tmp_path / "run"
    with locked(run) as folder:
        log = EventLog(folder.events)
        log({"event": "step"})
        folder.store.save(1, lambda saving: (saving / "file").touch())  # the control
        MOVES[move](run)
        there = run.exists()
        with pytest.raises(RunFailed, match=rf"{run}: the run's folder was renamed or removed"):
            log({"event": "step"})
        with pytest.raises(RunFailed, match=rf"{run}: the run's folder was renamed or removed"):
            folder.store.save(2, lambda saving: (saving / "file").touch())
        log.close()
    assert run.exists() == there
    assert not there or not any(run.iterdir())
