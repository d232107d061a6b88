"""`train --devices`: ranks that are killed, hang or are stopped; what stays, what is said, what goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gptbridge.api import train
from gptbridge.errors import Interrupted, RunFailed, UsageError
from gptbridge.hookspecs import Launch
from gptbridge.plugins import launching
from gptbridge.plugins.backend import load_backend
from gptbridge.plugins.launching import Job
from gptbridge.plugins.verdict import Losses, Patience, blame
from gptbridge.process.records import OwnRecord, Record, Seen
from gptbridge.training.events import read_events
from gptbridge_specs import SpecError
from tests.checkpoint.conftest import opened_run
from tests.conftest import Spawn
from tests.training.conftest import (
    ENVIRONMENT,
    NO_DROPOUT,
    TINY,
    command,
    gptbridge,
    numbers_of,
    options,
    run_jobs,
)

SECRET = "a-token-that-no-log-may-have"
SPEC = [*TINY, *NO_DROPOUT, "training.max_steps=1000000", "evaluation.interval=0", "checkpoint.interval=3"]


def launched(spawn: Spawn, run: Path, *words: str) -> subprocess.Popen[str]:
    """Go on with a run on two devices, or begin it."""
    return spawn(
        command(
            "train", "-b", "torch", "--devices", "2", "--run", run, "--resume", "auto", "--quiet", *words
        ),
        env={**ENVIRONMENT, "SECRET": SECRET},
        start_new_session=True,
    )


def wait_for_steps(run: Path, steps: int, process: subprocess.Popen[str]) -> None:
    """Wait until `steps` steps more have been done."""
    events = run / "events.jsonl"
    before = len(numbers_of(run)) if events.exists() else 0
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if events.exists() and len(numbers_of(run)) >= before + steps:
            return
        time.sleep(0.05)
    process.kill()
    raise AssertionError(process.communicate())


def processes_of(run: Path) -> list[int]:
    """Return the ranks, launchers and whatever else names this run in its command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(run / "ranks") in words:
            found.append(int(path.parent.name))
    return found


def record(run: Path, rank: int) -> Record:
    content = json.loads((run / f"ranks/rank-{rank}.json").read_bytes())
    return Record(**content)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code of a command, and the one line that it has said."""
    _, said = process.communicate(timeout=60)
    lines = [line for line in said.splitlines() if not line.startswith("stopping")]
    assert len(lines) == 1, said
    return process.returncode, lines[0]


def test_a_rank_that_dies_hangs_or_is_stopped(tmp_path: Path, spawn: Spawn, signals_count: None) -> None:
    """One run that all of this happens to; in the end it is as if nothing had happened."""
    run = tmp_path / "run"
    process = launched(spawn, run, *options(SPEC))
    wait_for_steps(run, 4, process)
    assert len(processes_of(run)) >= 2
    killed = record(run, 1)
    os.kill(killed.pid, signal.SIGKILL)
    code, said = ended(process)
    assert (code, processes_of(run)) == (1, [])
    assert f"rank 1 (process {killed.pid}) ended without a word" in said
    assert read_events(run / "events.jsonl")[-1]["reason"] == "failed"

    process = launched(spawn, run, "--hang-timeout", "2")
    wait_for_steps(run, 2, process)
    os.kill(record(run, 0).pid, signal.SIGSTOP)
    code, said = ended(process)
    assert (code, processes_of(run)) == (1, [])
    assert "rank 0" in said
    assert "no sign of life for 2 seconds" in said

    process = launched(spawn, run)
    wait_for_steps(run, 2, process)
    process.send_signal(signal.SIGINT)
    code, said = ended(process)
    last = max(numbers_of(run))
    assert (code, processes_of(run)) == (130, [])
    assert f"stopped by SIGINT; step {last} is saved" in said
    with opened_run(run / f"checkpoints/step-{last:08d}") as checkpoint:
        assert checkpoint.state.step == last

    for path in run.rglob("*"):
        assert path.is_dir() or SECRET.encode() not in path.read_bytes(), path
    alone = {"run": str(tmp_path / "alone"), "overrides": [*SPEC, f"training.stop_after_steps={last}"]}
    run_jobs(tmp_path, "torch", [alone])
    for step, numbers in numbers_of(tmp_path / "alone").items():
        assert numbers_of(run)[step] == pytest.approx(numbers, rel=1e-5), step


@pytest.mark.parametrize("received", [None, signal.SIGTERM])
def test_a_launcher_that_is_killed_ends_its_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, received: signal.Signals | None
) -> None:
    """Unless it got the signal that the command has got too: then its ranks may save."""
    monkeypatch.setattr(launching, "_LAST_WORDS_SECONDS", 0.0)
    launcher = subprocess.Popen(["sleep", "60"])
    job = Job(Launch(processes=1, logs=tmp_path, port=1), tmp_path, tmp_path, launcher, Patience(300), "")
    if received is not None:
        with pytest.raises(Interrupted, match="SIGTERM before a rank began") as stopped:
            job.done(received)
        assert stopped.value.exit_code == 143
    kept = OwnRecord(tmp_path, 0)
    assert not job.done(received)
    assert not job.done(received)
    launcher.kill()
    launcher.wait()
    assert not job.done(received)
    if received is None:
        with pytest.raises(RunFailed, match=r"the launcher \(process \d+\) .* killed by SIGKILL"):
            job.done()
    assert not job.done(signal.SIGTERM)
    kept.end(0)
    assert job.done(received)


def test_what_must_be_done_in_the_end_is_done_by_whatever_ends_it(tmp_path: Path, spawn: Spawn) -> None:
    """A first signal may be caught, and what is done in the end not be interrupted; a second one acts too."""
    for number, (words, code) in enumerate(
        (("signals.unwinding()", 143), ("signals.StopRequest('x')", 143), ("nullcontext()", -15))
    ):
        left = tmp_path / f"{number}"
        left.touch()
        process = spawn([sys.executable, "-c", IN_THE_END.format(words=words), left], env=ENVIRONMENT)
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
            time.sleep(0.2)
        process.communicate(timeout=30)
        assert (process.returncode, left.exists()) == (code, code < 0)


IN_THE_END = """
import sys, time
from contextlib import nullcontext
from pathlib import Path
from gptbridge.process import signals

def act():
    time.sleep(0.5)
    Path(sys.argv[1]).unlink()

with {words}, signals.in_the_end(act):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_ranks_end_with_a_command_that_is_killed(tmp_path: Path, spawn: Spawn) -> None:
    run = tmp_path / "run"
    process = launched(spawn, run, *options(SPEC))
    wait_for_steps(run, 1, process)
    (request,) = (run / "ranks").glob("request-*.json")
    private = Path(json.loads(request.read_text())["logs"])
    assert private.is_dir()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 30
    while processes_of(run) or private.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("devices", "overrides", "said"),
    [
        (3, ["parallel.tensor=2"], "parallel.data: 3 devices / (tensor 2 x"),
        (4, ["parallel.data=3"], "= 3 devices, not 4: parallel.data=4 would be"),
        (None, ["parallel.tensor=4"], "parallel.tensor: model.num_attention_heads 2 / tensor 4 is no"),
        (2, ["parallel.tensor=2", "model.ffn_hidden_size=7"], "ffn_hidden_size 7 / tensor 2 is no"),
        (None, ["parallel.pipeline=3"], "parallel.pipeline: model.num_layers 2 / (pipeline 3"),
        (2, ["parallel.pipeline=2"], "2 stages need as many micro-batches; a step has 4 samples"),
        (100_000, ["training.global_batch_size=100000"], "each of 100000 ranks needs"),
    ],
)
def test_what_cannot_be_is_refused_before_launch(
    tmp_path: Path, devices: int | None, overrides: list[str], said: str
) -> None:
    run = tmp_path / "run"
    with pytest.raises((SpecError, UsageError)) as refused:
        train(backend="torch", run=run, overrides=[*TINY, *overrides], devices=devices)
    assert said in str(refused.value)
    assert not run.exists()


def test_the_command_for_other_launchers_is_printed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--devices", "2", "--nodes", "2", "--node-rank", "1", "--master", "first:29500")
    result = gptbridge("train", "-b", "torch", "--run", run, *options(TINY), *words, "--print-launch")
    assert "--nnodes=2 --node-rank=1 --nproc-per-node=2 --master-addr=first" in result.stdout
    request = json.loads((run / "ranks/node-1/request.json").read_bytes())
    assert request["spec"]["parallel"]["data"] == 4
    assert request["private"] is None


@pytest.mark.parametrize(("node", "master"), [(0, "127.0.0.1:29500"), (1, "first:29500")])
def test_the_first_machine_of_paddle_serves_by_whatever_name_it_has(
    tmp_path: Path, node: int, master: str
) -> None:
    launch = Launch(processes=1, logs=tmp_path, port=29500, master="first", nodes=2, node_rank=node)
    command = load_backend("paddle").launch_command(launch, ["rank"])
    assert command[command.index("--master") + 1] == master


def seen(
    rank: int, message: str = "", *, at: float = 0.0, alive: bool = False, foreseen: bool = False
) -> Seen:
    code = 1 if message else None
    made = Record(100 + rank, rank, exit_code=code, message=message, ended=at, foreseen=foreseen)
    return Seen(made, alive, 0)


LATE = time.time() + 1e6
GONE = "RuntimeError: Connection closed by peer"


@pytest.mark.parametrize(
    ("ranks", "first"),
    [
        ((seen(0, GONE, at=1), seen(1)), 1),  # killed: the other one only says that it has gone
        ((seen(0, GONE, at=2), seen(1, "ValueError: 3", at=1)), 1),
        ((seen(0, GONE, at=1), seen(1, "ValueError: 3", at=2)), 1),
        ((seen(0, "no disk", at=1, foreseen=True), seen(1)), 0),  # found dead after that
        ((seen(0, "no disk", at=LATE, foreseen=True), seen(1)), 1),
        ((seen(0, GONE, at=1), seen(1, alive=True)), 0),
        ((seen(0, alive=True), seen(1, alive=True)), None),
    ],
)
def test_the_first_to_fail_is_blamed(ranks: tuple[Seen, ...], first: int | None) -> None:
    losses = Losses()
    losses.look(ranks)
    found = losses.first_failure(ranks)
    assert (found and found.rank) == first


def test_of_ranks_that_all_stand_still_the_one_that_does_not_wait_is_blamed() -> None:
    def standing(rank: int, *stack: str) -> Seen:
        return Seen(Record(rank, rank, step=7, stack=stack), True, 0)

    waits = standing(0, "collectives.py:20 all_reduce", "session.py:9 step")
    assert (
        blame([waits, standing(1, "readers.py:5 read")]) == "rank 1 hangs after step 7, in readers.py:5 read"
    )
    assert "wait for each other after step 7" in blame([waits, standing(1, "collectives.py:20 all_reduce")])
