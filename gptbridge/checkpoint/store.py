"""The checkpoints of one run: each appears whole or not at all, and the newest good one is found.

A checkpoint is written under a hidden name, pushed to the disk, then renamed: whatever kills the
process, a folder called step-00001000 is complete.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from gptbridge.checkpoint.manifest import Entry, verify, write_manifest
from gptbridge.errors import BadInput, BridgeError, RunFailed
from gptbridge.files import discard, identity, sync_folder
from gptbridge_specs.run import CheckpointSpec

MOVED = "the run's folder was renamed or removed while it trained"
FOLLOW = "What was saved went with it: continue there with --resume"
CHECKPOINTS = "checkpoints"  # the folder of them in a run's folder
BEST = "best"  # in that folder, a link to one of them
_NAME = re.compile(r"step-(\d{8,})")
_SAVING, _REPLACED, _REMOVING = ".saving-", ".replaced-", ".removing-"


class CheckpointStore:
    """The folder `checkpoints` of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._run = identity(folder.parent)

    def path(self, step: int) -> Path:
        """Return where the checkpoint of `step` is, or would be."""
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, oldest first."""
        if not self.folder.is_dir():
            return []
        names = (_NAME.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def newest_good(self, warn: Callable[[str], None]) -> Path | None:
        """Return the newest checkpoint that is whole, or None where there is none at all.

        Each damaged one is named to `warn` and passed over. BadInput when all are damaged.
        """
        newest: BadInput | None = None
        for step in reversed(self.steps()):
            try:
                verify(self.path(step))
            except BadInput as error:
                newest = newest or error
                warn(f"checkpoint {self.path(step)} cannot be used: {error}")
            else:
                return self.path(step)
        if newest is not None:
            raise BadInput(
                f"every checkpoint is damaged, the newest one thus: {newest}",
                where=self.folder,
                hint="Bring back a whole checkpoint from a copy, or begin a new run with another --run",
            )
        return None

    def saving(self, step: int) -> Path:
        """Return the hidden folder that becomes the checkpoint of `step` once it is whole."""
        return self.folder / (_SAVING + self.path(step).name)

    def save(self, step: int, write: Callable[[Path], Mapping[str, Entry] | None]) -> Path:
        """Let `write` fill a folder and make it the checkpoint of `step`.

        What `write` returns is known of its files already. RunFailed when the disk does not take it: then
        nothing of it is left, and the checkpoints from before are untouched; or when the run's folder has
        gone, by a new name or for good.
        """
        if self._run not in (None, identity(self.folder.parent)):
            raise RunFailed(MOVED, where=self.folder.parent, hint=FOLLOW)
        final, saving = self.path(step), self.saving(step)
        with _all_or_nothing(saving, final):
            saving.mkdir(parents=True)
            write_manifest(saving, write(saving))
            sync_folder(saving)
            if final.exists():
                final.rename(final.with_name(_REPLACED + final.name))
            saving.rename(final)
            sync_folder(self.folder)
        _forget(final.with_name(_REPLACED + final.name))
        return final

    def prune(self, spec: CheckpointSpec, best: int | None = None) -> None:
        """Remove all but the newest `spec.keep` checkpoints and the multiples of `spec.keep_every`.

        With `spec.keep_best` that of the step `best` stays too, and the link `best` leads to it.
        """
        if spec.keep_best and best in self.steps():
            self._link_best(self.path(best).name)
        every = spec.keep_every
        for step in self.steps()[: -spec.keep]:
            if (every is None or step % every) and not (spec.keep_best and step == best):
                self._remove(step)

    def set_aside_after(self, good: Path) -> None:
        """Rename the checkpoints newer than `good`, which are damaged: they are never counted again."""
        newer = self.steps()
        while newer and self.path(newer[-1]).name != good.name:
            damaged = self.path(newer.pop())
            aside = damaged.with_name("damaged-" + damaged.name)
            _forget(aside)
            damaged.rename(aside)

    def clean(self) -> None:
        """Remove what a killed save or removal left behind. Only the run's one trainer may."""
        for prefix in (_SAVING, _REPLACED, _REMOVING):
            for left in self.folder.glob(prefix + "*"):
                _forget(left)

    def _link_best(self, name: str) -> None:
        made = self.folder / (_SAVING + BEST)
        with suppress(OSError):  # a disk without links keeps the checkpoint all the same
            made.unlink(missing_ok=True)
            made.symlink_to(name)
            made.replace(self.folder / BEST)

    def _remove(self, step: int) -> None:
        # Renamed first: a half-deleted folder must not look like a damaged checkpoint.
        removing = self.folder / (_REMOVING + self.path(step).name)
        self.path(step).rename(removing)
        _forget(removing)


def _forget(path: Path) -> None:
    with suppress(OSError):
        discard(path)


@contextmanager
def _all_or_nothing(saving: Path, final: Path) -> Iterator[None]:
    try:
        _forget(saving)
        yield
    except BaseException as error:
        _forget(saving)
        refused = error if isinstance(error, OSError) else error.__cause__
        if isinstance(refused, OSError):
            raise RunFailed(
                f"the checkpoint could not be saved: {refused.strerror}",
                where=final,
                hint="Earlier checkpoints are untouched; make room and continue with --resume auto",
            ) from error
        if isinstance(error, BridgeError):
            error.where = error.where or final
        raise
