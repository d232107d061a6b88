"""Saving beside the steps: a thread copies what this rank owns, and writes the copy while training goes on.

A copy is taken beside the gradients of the next step, which waits for it before it changes the weights.

The ranks of a run write one checkpoint. They agree through files in its hidden folder, never through
collectives, which belong to the steps: rank 0 makes the folder and marks it `ready`; each rank marks what it
has `written`, then hashes its share of the files and marks them `hashed`; then rank 0 writes the manifest and
gives the folder its name.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gptbridge.checkpoint.manifest import Entry, entry_of
from gptbridge.checkpoint.state import TrainingState
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.checkpoint.writing import Content, kinds_of
from gptbridge.data.tokenizers import Tokenizer
from gptbridge.errors import RunFailed
from gptbridge.session import Kind, Shard
from gptbridge.weights.held import held_names
from gptbridge_specs.run import CheckpointSpec

_LOOK_SECONDS = 0.02
_NICENESS = 15  # of the thread that writes: it gets 3 % of a core that a step's thread keeps busy
_MARK = ".mark-"


@dataclass(frozen=True, slots=True)
class Saved:
    """One checkpoint that is whole, and the seconds from its copy to its name."""

    step: int
    path: Path
    seconds: float


class Saver:
    """The checkpoints of one rank of `ranks`, one at a time."""

    def __init__(
        self,
        store: CheckpointStore,
        keep: CheckpointSpec,
        room: Callable[[], int],
        rank: int,
        ranks: int,
        *,
        asked: bool = False,
    ) -> None:
        """`room` tells how many bytes a copy may take; a run that needs more waits for the writing.

        `asked` promises that `wait_for_copy` is called before a tensor changes: `begin` need not wait.
        """
        self._store, self._keep, self._room = store, keep, room
        self._rank, self._ranks, self._asked = rank, ranks, asked
        self._copied = threading.Event()
        self._copied.set()
        self._thread = ThreadPoolExecutor(1, "gptbridge-save")
        self._writer: int | None = None  # the thread, while it writes beside the steps
        self._pending: Future[Saved] | None = None

    def begin(
        self,
        state: TrainingState,
        tokenizer: Tokenizer,
        shards: Callable[[Kind], Sequence[Shard]],
        *,
        wait: bool = False,
    ) -> Saved | None:
        """Begin to save the run as it stands; return the checkpoint before, if it was still being saved.

        `wait` for it where there is nothing to do beside it: without a copy, and as fast as steps go.
        RunFailed where the one before failed.
        """
        before, started = self.finish(), time.perf_counter()
        saved = {*held_names(state.spec.model, task=state.spec.task, trained=True)}
        owned = {
            kind: [shard for shard in shards(kind) if shard.owned and shard.name in saved]
            for kind in kinds_of(state)
        }
        nbytes = sum(4 * int(np.prod(shard.shape)) for held in owned.values() for shard in held)
        content = Content(state, tokenizer, owned)
        if not wait and nbytes <= self._room():
            self._copied.clear()
            self._pending = self._thread.submit(self._save_beside, content, started)
            if not self._asked:
                self.wait_for_copy()
        else:
            self._pending = Future()
            self._pending.set_result(self._save(content, started))
        return before

    def wait_for_copy(self) -> None:
        """Return once no tensor of the trainer is read any more."""
        self._copied.wait()

    def done(self) -> Saved | None:
        """Return the checkpoint that has become whole since the last question; RunFailed where it failed."""
        return self.finish() if self._pending is not None and self._pending.done() else None

    def finish(self) -> Saved | None:
        """Wait for what is being saved, and return it; RunFailed where it failed."""
        pending, self._pending = self._pending, None
        if (writer := self._writer) is not None:
            _set_niceness(writer, os.getpriority(os.PRIO_PROCESS, 0))  # now the steps wait for it
        return None if pending is None else pending.result()

    def close(self) -> None:
        """Wait for the thread."""
        self._thread.shutdown()

    def _save_beside(self, content: Content, started: float) -> Saved:
        """Copy, then save where the steps leave a core idle."""
        try:
            copies = {kind: [_copied(shard) for shard in held] for kind, held in content.shards.items()}
        finally:
            self._copied.set()
        self._writer = threading.get_native_id()
        _set_niceness(self._writer, _NICENESS)
        try:
            return self._save(replace(content, shards=copies), started)
        finally:
            self._writer = None

    def _save(self, content: Content, started: float) -> Saved:
        step = content.state.step
        saving = Meeting(self._store.saving(step), self._rank, self._ranks)
        if self._rank:
            saving.write(content)
            path = self._store.path(step)
        else:
            path = self._store.save(step, lambda folder: saving.write(content))
            self._store.prune(self._keep, content.state.best.step if content.state.best else None)
        return Saved(step, path, time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class Meeting:
    """The folder in which `ranks` ranks write one checkpoint, as one of them sees it."""

    folder: Path
    rank: int
    ranks: int

    def write(self, content: Content) -> dict[str, Entry]:
        """Write this rank's part of a checkpoint; return, to rank 0, what the manifest says of its files.

        RunFailed where another rank has failed.
        """
        try:
            if self.rank == 0:
                content.create(self.folder)
                self._mark("ready", [])
            self._wait("ready", [0])
            content.write_tensors(self.folder)
            self._mark("written", [])
            self._wait("written", range(self.ranks))
            files = sorted(path for path in self.folder.iterdir() if not path.name.startswith(_MARK))
            mine = files[self.rank :: self.ranks]
            self._mark("hashed", {path.name: entry_of(path) for path in mine})
        except BaseException as error:
            if isinstance(error, FileNotFoundError):
                self._require_no_failure()  # for which the folder has gone
            if self.ranks > 1:
                with suppress(OSError):
                    self._failures.mkdir(exist_ok=True)
                    (self._failures / str(self.rank)).write_text(str(error))
            raise
        return self._gather() if self.rank == 0 else {}

    def _gather(self) -> dict[str, Entry]:
        """Wait for the hashes of all ranks, and remove the marks."""
        self._wait("hashed", range(self.ranks))
        entries: dict[str, Entry] = {}
        for rank in range(self.ranks):
            entries |= json.loads(self._path("hashed", rank).read_bytes())
        for mark in self.folder.glob(f"{_MARK}*"):
            mark.unlink()
        return entries

    @property
    def _failures(self) -> Path:
        """Where ranks say why they could not save, also once the folder has gone for it."""
        return self.folder.with_name(f"{self.folder.name}.failed")

    def _path(self, what: str, rank: int) -> Path:
        return self.folder / f"{_MARK}{what}.{rank}"

    def _mark(self, what: str, content: object) -> None:
        path = self._path(what, self.rank)
        new = path.with_name(f"{_MARK}new.{self.rank}")
        new.write_text(json.dumps(content))
        new.replace(path)

    def _wait(self, what: str, ranks: Sequence[int]) -> None:
        """Wait until each of `ranks` has marked `what`."""
        for rank in ranks:
            while not self._path(what, rank).exists():
                self._require_no_failure()
                time.sleep(_LOOK_SECONDS)

    def _require_no_failure(self) -> None:
        for failed in self._failures.glob("*"):
            raise RunFailed(f"rank {failed.name}: {failed.read_text()}")


def _copied(shard: Shard) -> Shard:
    array = shard.read()
    return replace(shard, read=lambda: array)


def _set_niceness(thread: int, niceness: int) -> None:
    if sys.platform == "linux":
        with suppress(PermissionError, ProcessLookupError):  # who steps back may often not step forward again
            os.setpriority(os.PRIO_PROCESS, thread, niceness)
