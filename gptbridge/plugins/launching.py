"""The ranks of one machine: started by the framework's launcher, watched over, ended together.

The launchers blame the wrong rank, lose exit codes, kill a rank that saves, or leave ranks behind. So what
happens is read from the ranks' own records, and this process ends every one of them.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from gptbridge.errors import Interrupted, RunFailed, printable
from gptbridge.files import discard, open_own
from gptbridge.hookspecs import Launch
from gptbridge.plugins.backend import Backend
from gptbridge.plugins.rank import RankTask
from gptbridge.plugins.verdict import Losses, Patience, blame, has_failed, is_lost
from gptbridge.process.cores import usable_cores
from gptbridge.process.records import Record, Seen, seen_in
from gptbridge.process.signals import StopRequest, in_the_end
from gptbridge.process.watching import ASK_FILE, STOP_FILE

_LOOK_SECONDS = 0.1
_LAST_WORDS_SECONDS = 2.0  # for the others to say why they end, once one has failed
_ANSWER_SECONDS = 5.0  # for the ranks to say where they stand
_END_SECONDS = 10.0
_LEFT = ("rank-*", "process-*", "request-*", STOP_FILE, ASK_FILE, "launcher.log")  # by a launch before
# What a launcher writes of its environment, with all that is secret in it.
_SECRETS = ("**/envlog*", "**/backup_env*", "**/default.*.log")


def command_of(backend: Backend, launch: Launch, request: Path) -> list[str]:
    """Return the framework's own command that starts the ranks of `request`."""
    return backend.launch_command(launch, [sys.executable, "-m", "gptbridge.plugins.rank", str(request)])


def write_request(path: Path, task: RankTask, fields: Mapping[str, Any], private: Path | None = None) -> None:
    """Write what the ranks read: all on their own, or with a supervisor, which locks this file.

    Where the supervisor is killed, the ranks remove its `private` folder.
    """
    named = None if private is None else str(private)
    content = {"task": [task.__module__, task.__name__], "private": named, **fields}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def remove_secrets(logs: Path) -> None:
    """Remove what the launcher has left of the environment in `logs`, once its ranks have met."""
    for secret in [path for pattern in _SECRETS for path in logs.glob(pattern)]:
        discard(secret)


def free_port() -> int:
    """Return a port of this machine that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def run_ranks(
    backend: Backend,
    launch: Launch,
    task: RankTask,
    fields: Mapping[str, Any],
    folder: Path,
    *,
    stop: StopRequest,
    hang_seconds: float,
    meanwhile: Callable[[], None],
) -> list[Record]:
    """Start the ranks of this machine on `task`; return their records once all have ended as they should.

    What `stop` receives is handed to every rank. `meanwhile` is called again and again. The rest is as in
    `launched`.
    """
    advice = "; --resume auto goes on"
    try:
        with launched(backend, launch, task, fields, folder, hang_seconds, advice) as job:
            while not job.done(stop.received):
                meanwhile()
                time.sleep(_LOOK_SECONDS)
    finally:
        meanwhile()
    return [one.record for one in job.own()]


@contextmanager
def launched(
    backend: Backend,
    launch: Launch,
    task: RankTask,
    fields: Mapping[str, Any],
    folder: Path,
    hang_seconds: float,
    advice: str = "",
    *,
    passing: bool = False,
) -> Iterator[Job]:
    """Start the ranks of this machine on `task`; none of the processes is left in the end.

    `folder` gets the records and what each rank prints; it is `passing` where it is for this launch alone.
    The job's `done` raises RunFailed, which names the rank that failed first, or the one that has done
    nothing for `hang_seconds`; `advice` ends its hint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in [path for pattern in _LEFT for path in folder.glob(pattern)]:
        discard(left)
    request = folder / f"request-{time.time_ns()}.json"
    logs = Path(tempfile.mkdtemp(prefix="gptbridge-", dir=folder if passing else None))
    with in_the_end(partial(shutil.rmtree, logs, ignore_errors=True)), _locked(request):
        write_request(request, task, {**fields, "logs": str(logs)}, folder if passing else logs)
        command = command_of(backend, replace(launch, logs=logs), request)
        launcher = _started(command, folder / "launcher.log", launch.processes)
        job = Job(launch, folder, logs, launcher, Patience(hang_seconds), advice)
        with in_the_end(job.end):
            yield job


@dataclass
class Job:
    """The ranks of one launch, as the process sees them that started it."""

    launch: Launch
    folder: Path
    logs: Path
    launcher: subprocess.Popen[bytes]
    patience: Patience
    advice: str
    losses: Losses = field(default_factory=Losses)
    failed_at: float | None = None
    asked_at: float | None = None

    def own(self, seen: Sequence[Seen] | None = None) -> list[Seen]:
        """Return the ranks of this machine."""
        first = self.launch.node_rank * self.launch.processes
        numbers = range(first, first + self.launch.processes)
        return [one for one in (seen or seen_in(self.folder)) if one.record.rank in numbers]

    def be_patient(self) -> None:
        """Let what was seen of idle ranks so far not count."""
        self.patience = Patience(self.patience.seconds)

    def done(self, received: signal.Signals | None = None) -> bool:
        """Tell whether all ranks have ended as they should; RunFailed once it is clear why one has not.

        The signal that was `received`, if any, is handed to every rank; Interrupted where none has begun.
        """
        if received and not (self.folder / STOP_FILE).exists():
            _put(self.folder / STOP_FILE, str(int(received)))
        seen = list(seen_in(self.folder))
        own = self.own(seen)
        if received and not own:  # the launcher may wait for another machine for long
            words = f"stopped by {received.name} before a rank began"
            raise Interrupted(words, exit_code=128 + received)
        self.losses.look(seen)
        broken = any(has_failed(one.record) or is_lost(one) for one in seen)
        ended = [one for one in own if one.record.exit_code is not None]
        if len(ended) == self.launch.processes and not broken:
            return True
        # A launcher that got the signal which we have received may go before its ranks have saved.
        living = received is None and len(ended) < len(own)
        alone = self.launcher.poll() is not None and (living or len(own) < self.launch.processes)
        if not broken and not alone:
            self.failed_at = None
            self._require_life([one for one in own if one.record.exit_code is None])
        elif self.failed_at is None:
            self.failed_at = time.monotonic()
        elif time.monotonic() - self.failed_at > _LAST_WORDS_SECONDS:
            raise self._failure(seen)
        return False

    def end(self) -> None:
        """End every process of the launch that is left, and wait for that."""
        pids = [one.record.pid for one in seen_in(self.folder) if one.alive]
        for pid in (*pids, self.launcher.pid):
            with suppress(OSError):
                group = os.getpgid(pid)
                os.kill(pid, signal.SIGKILL) if group == os.getpgrp() else os.killpg(group, signal.SIGKILL)
        self.launcher.wait()
        deadline = time.monotonic() + _END_SECONDS
        while any(one.alive for one in seen_in(self.folder)) and time.monotonic() < deadline:
            time.sleep(_LOOK_SECONDS / 10)

    def _failure(self, seen: Sequence[Seen]) -> RunFailed:
        first = self.losses.first_failure(seen)
        if first is None:
            code = self.launcher.returncode
            words = f"killed by {signal.Signals(-code).name}" if code < 0 else self._last_words()
            return self._error(f"the launcher (process {self.launcher.pid}) ended before its ranks: {words}")
        if has_failed(first):
            return self._error(f"{first.name}: {first.message.rstrip('.')}", first.exit_code)
        return self._error(
            f"{first.name} (process {first.pid}) ended without a word after step {first.step}: killed, by "
            "somebody or for want of memory"
        )

    def _error(self, problem: str, exit_code: int | None = None) -> RunFailed:
        error = RunFailed(problem, hint=f"{self.folder} has what each rank printed{self.advice}")
        error.exit_code = exit_code or error.exit_code
        return error

    def _require_life(self, living: Sequence[Seen]) -> None:
        """RunFailed where a rank hangs."""
        silent = self.patience.silent(living)
        if silent is not None:
            raise self._error(
                f"{silent.name} (process {silent.pid}) hangs after step {silent.step}: no sign of life for "
                f"{self.patience.seconds:g} seconds"
            )
        if self.asked_at is None and self.patience.all_idle(living):
            self.asked_at = time.monotonic()
            _put(self.folder / ASK_FILE, "")
        elif self.asked_at is not None and time.monotonic() - self.asked_at > _ANSWER_SECONDS:
            raise self._error(
                f"{blame(living)}. No rank has done anything for {self.patience.seconds:g} seconds"
            )

    def _last_words(self) -> str:
        """Return the last line that the launcher, or a rank that was none yet, has printed."""
        files = [self.folder / "launcher.log", *(path for path in self.logs.rglob("*") if path.is_file())]
        texts = [path.read_text(errors="replace").split("\n") for path in files]
        lines = [line.strip() for text in texts for line in text if line.strip()]
        return printable(lines[-1]) if lines else "it printed nothing"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock on `path`, by which the ranks know that this process lives; then remove it."""
    handle = open_own(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def _started(command: Sequence[str], log: Path, ranks: int) -> subprocess.Popen[bytes]:
    """Start the launcher in a session of its own: what a terminal sends reaches this process alone."""
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}"}
    environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // ranks)))
    environment["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"] = "86400"  # a rank may finish its step and save
    with log.open("wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )


def _put(path: Path, content: str) -> None:
    """Make a file that appears whole."""
    new = path.with_name(f".{path.name}.new")
    discard(new)  # which may be a link
    new.write_text(content)
    new.replace(path)
