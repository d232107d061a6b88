"""Which spec, folder, checkpoint and backend a command means."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from gptbridge.checkpoint.state import write_state
from gptbridge.errors import BadInput, RunFailed, UsageError
from gptbridge.training.events import EventLog
from gptbridge.training.run_folder import RunFolder, locked
from gptbridge.training.start import AUTO, Devices, choose_backend, choose_checkpoint, resolve
from gptbridge_specs import dump_yaml, load_run
from tests.checkpoint.conftest import spec_of, state_of, writer


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run of spec_of() with checkpoints of steps 10 and 20, that was told to stop at 20."""
    folder = RunFolder(tmp_path / "run")
    for step in (10, 20):
        folder.store.save(step, writer(spec_of(), step))
    stopped = spec_of().model_dump()
    stopped["training"]["stop_after_steps"] = 20
    (folder.path / "spec.yaml").write_text(dump_yaml(type(spec_of()).model_validate(stopped)))
    return folder


def test_a_new_run_is_named_after_its_spec(tmp_path: Path) -> None:
    assert resolve(None, (), None, None).run == Path("runs/gpt2-tiny")
    file = tmp_path / "mine.yaml"
    file.write_text("preset: gpt2-tiny\n")
    request = resolve(str(file), ["training.max_steps=3"], None, None)
    assert request.run == Path("runs/mine")
    assert request.spec == load_run("gpt2-tiny", ["training.max_steps=3"])
    assert resolve("gpt2-tiny", (), Path("here"), None).run == Path("here")


def test_a_resumed_run_keeps_spec_and_folder_but_not_its_early_stop(folder: RunFolder) -> None:
    for resume in (folder.path, folder.store.path(20)):
        request = resolve(None, ["training.max_steps=99"], None, str(resume))
        assert request.run == folder.path
        assert request.spec.model == spec_of().model
        assert request.spec.training.max_steps == 99
        assert request.spec.training.stop_after_steps is None
    again = resolve(None, ["training.stop_after_steps=30"], folder.path, AUTO)
    assert again.spec.training.stop_after_steps == 30


def test_a_folder_that_cannot_be_looked_into_is_one_line(tmp_path: Path) -> None:
    long, loop = tmp_path / ("n" * 300), tmp_path / "loop"
    loop.symlink_to("loop")
    for run, resume in ((None, str(long)), (long, AUTO)):
        with pytest.raises(BadInput, match="File name too long"):
            resolve(None, (), run, resume)
    for place, reason in ((long, "File name too long"), (loop, "no such file or folder")):
        with pytest.raises(BadInput, match=reason) as refused:
            choose_checkpoint(RunFolder(tmp_path / "run"), str(place), pytest.fail)
    assert "It is a link that leads nowhere" in str(refused.value)


def test_a_lone_checkpoint_folder_brings_its_spec(folder: RunFolder, tmp_path: Path) -> None:
    alone = Path(shutil.copytree(folder.store.path(20), tmp_path / "alone"))
    request = resolve(None, (), tmp_path / "new", str(alone))
    assert (request.spec, request.run) == (spec_of(), tmp_path / "new")


def test_auto_takes_the_newest_and_sets_damaged_ones_aside(folder: RunFolder) -> None:
    assert choose_checkpoint(folder, AUTO, pytest.fail) == folder.store.path(20)
    (folder.store.path(20) / "state.json").write_text("{}")
    warnings: list[str] = []
    assert choose_checkpoint(folder, AUTO, warnings.append) == folder.store.path(10)
    assert len(warnings) == 1
    assert folder.store.steps() == [10]
    assert choose_checkpoint(RunFolder(folder.path / "new"), AUTO, pytest.fail) is None


def test_two_histories_never_mix(folder: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="newer checkpoints"):
        choose_checkpoint(folder, str(folder.store.path(10)), pytest.fail)
    with pytest.raises(UsageError, match="a run in this folder already"):
        choose_checkpoint(folder, None, pytest.fail)
    other = RunFolder(tmp_path / "other")
    assert choose_checkpoint(other, str(folder.store.path(10)), pytest.fail) == folder.store.path(10)
    other.store.save(10, writer(spec_of(), 10))
    with pytest.raises(UsageError, match="a run in this folder already"):
        choose_checkpoint(other, str(folder.path), pytest.fail)


@pytest.mark.parametrize(
    ("before", "taken"), [("paddle", "paddle"), ("mindspore", "mindspore"), ("gone", "torch")]
)
def test_a_resumed_run_stays_with_its_backend(folder: RunFolder, before: str, taken: str) -> None:
    state = state_of(spec_of(), 20).model_copy(update={"backend": before})
    write_state(folder.store.path(20), state)
    assert choose_backend(resolve(None, (), folder.path, AUTO)) == taken
    assert choose_backend(resolve(None, (), None, str(folder.store.path(20)))) == taken
    assert choose_backend(resolve(None, (), folder.path, None)) == "torch"


def test_a_run_has_a_place_of_its_own(folder: RunFolder, tmp_path: Path) -> None:
    checkpoint = folder.store.path(20)
    for place in (checkpoint, checkpoint / "new", folder.store.folder, folder.store.folder / "new"):
        with pytest.raises(UsageError, match="--run"), locked(place):
            pytest.fail("a run began inside another one")
        assert not (folder.store.folder / "new").exists()
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(UsageError, match=r"file: this is a file.*--run"), locked(place):
            pytest.fail("a run began in a file")
    (tmp_path / "manifest.json").write_text("{}")  # some other program's
    with locked(folder.path / "nested"):
        pass


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("n" * 300, "File name too long"),
        ("loop/run", "[Ll]oop|links"),
        pytest.param(
            "shut/run",
            "Permission denied",
            marks=pytest.mark.skipif(os.geteuid() == 0, reason="root searches every folder"),
        ),
    ],
)
def test_a_place_that_cannot_be_is_one_line(tmp_path: Path, place: str, reason: str) -> None:
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "shut").mkdir(0o000)
    with (
        pytest.raises(RunFailed, match=rf"the run folder cannot be written: .*{reason}"),
        locked(tmp_path / place),
    ):
        pytest.fail("a run began there")


@pytest.mark.parametrize("resume", [None, AUTO])
def test_a_spec_that_the_user_wrote_is_never_replaced(tmp_path: Path, resume: str | None) -> None:
    mine = RunFolder(tmp_path)
    (tmp_path / "spec.yaml").write_text("preset: gpt2-tiny  # mine\n")
    with pytest.raises(UsageError, match=r"spec\.yaml: no run has written this file.*--run"):
        choose_checkpoint(mine, resume, pytest.fail)
    mine.describe(spec_of(), {})
    assert choose_checkpoint(mine, resume, pytest.fail) is None


def test_a_run_that_failed_before_its_first_step_may_begin_again(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    log = EventLog(run.events)
    for event in ({"event": "start"}, {"event": "end", "reason": "failed"}):
        log(event)
    assert choose_checkpoint(run, None, pytest.fail) is None
    log({"event": "step", "step": 1})
    with pytest.raises(UsageError, match="a run in this folder already"):
        choose_checkpoint(run, None, pytest.fail)
    log.close()


def test_a_command_that_fails_early_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="x"), locked(tmp_path / "run"):
        raise UsageError("x")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "master", ["first", "first:", ":29500", "first:port", "first:0", "first:65536", "first:" + "9" * 9999]
)
def test_a_meeting_place_is_a_host_and_a_port(master: str) -> None:
    layout = spec_of().parallel
    with pytest.raises(UsageError, match="--master") as refused:
        Devices(master=master).processes(layout)
    assert "a port from 1 to 65535" in str(refused.value)
    here = Devices(master="first:65535")
    assert (here.processes(layout), here.meeting) == (1, ("first", 65535))
