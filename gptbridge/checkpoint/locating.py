"""Which checkpoint a path means."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptbridge.checkpoint.manifest import verify
from gptbridge.checkpoint.state import is_of_a_run
from gptbridge.checkpoint.store import CHECKPOINTS, CheckpointStore
from gptbridge.errors import BadInput
from gptbridge.files import nearby
from gptbridge.hub import fetched
from gptbridge.weights import opening


def hints_of(*, base: str | Path | None = None, **words: Any) -> opening.Hints:
    """Return what a user says of a checkpoint, as the opener's `hints_of`; `base` may be a run's folder."""
    return opening.hints_of(base=None if base is None else locate(Path(base), warnings.warn), **words)


def locate(path: Path, warn: Callable[[str], None]) -> Path:
    """Return the newest good checkpoint of the run folder `path`; else `path` itself, of whatever dialect.

    A name on a hub is fetched.

    What a run wrote is compared with its manifest: a damaged newest one is named to `warn` and the one
    before is taken. BadInput for one that is named itself, or where all are damaged, or nothing is there.
    """
    path = fetched(path)
    try:
        newest = CheckpointStore(path / CHECKPOINTS).newest_good(warn)
        if newest is not None:
            return newest
        if not path.exists():
            raise BadInput("no such file or folder", where=path, hint=nearby(path))
        folder = path if path.is_dir() else path.parent
        if is_of_a_run(folder):
            verify(folder)
    except OSError as error:
        raise BadInput(error.strerror or str(error), where=path) from error
    return path
