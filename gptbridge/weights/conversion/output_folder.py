"""The folder that a conversion writes: complete or absent, and nothing of anyone else's is lost."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from gptbridge.errors import BridgeError, RunFailed, UsageError, printable
from gptbridge.files import sync_folder
from gptbridge.weights.dialects.registry import known_dialects

# What a checkpoint consists of, beside its dialect's own files: names of files at any depth.
_COMMON = (
    r"[\w.-]+\.(safetensors|bin|pt|pth|pdparams|ckpt|index\.json)",
    r"(special_tokens_map|added_tokens|(gpt2-)?vocab|encoder|manifest|state|(generation_|tokenizer_)config)\.json",
    r"tokenizer\.json|(gpt2-)?merges\.txt|vocab\.(txt|bpe)|(tokenizer|sentencepiece|spiece)\.model",
)
_MOST_ENTRIES = 1 << 18
# renameat2 exchanges two names; Python has no call for it.
_renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
_HERE, _RENAME_EXCHANGE = -100, 2


def refuse_output(output: Path, source: Path, *, overwrite: bool, names: Sequence[str] = ()) -> None:
    """Raise UsageError where writing `output` could hurt `source` or something that is no checkpoint.

    `names` are regular expressions of what may lie there beside a checkpoint.
    """
    place, origin = Path(os.path.realpath(output)), Path(os.path.realpath(source))
    if place == origin or _same(output, source):
        raise UsageError("input and output are the same", where=output)
    if place in origin.parents:
        raise UsageError(f"holds the input, {source}", where=output, hint="Choose another name")
    if origin in place.parents and origin.is_dir():
        raise UsageError("lies inside the input", where=output, hint="Choose a name outside it")
    if not os.path.lexists(output):
        return
    if not overwrite:
        raise UsageError("exists already", where=output, hint="Choose another name, or give --overwrite")
    if output.is_symlink() or not output.is_dir():
        raise UsageError("is not a folder, so it is not replaced", where=output, hint="Choose another name")
    stranger = _first_stranger(output, names)
    if stranger is not None:
        raise UsageError(
            f"holds {printable(stranger)}, which is no part of a checkpoint: it is not replaced",
            where=output,
            hint="Choose another name",
        )


def _same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False


def _own_name(others: Sequence[str]) -> re.Pattern[str]:
    """Return what matches the names of files and folders, at any depth, of a checkpoint of any dialect,
    and `others`.
    """
    names = [name for dialect in known_dialects().dialects for name in dialect.own_names()]
    return re.compile("|".join(f"(?:{name})" for name in (*_COMMON, *names, *others)), re.ASCII)


def _first_stranger(folder: Path, names: Sequence[str]) -> str | None:
    known = _own_name(names)
    count = 0
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            count += 1
            if not known.fullmatch(name) or count > _MOST_ENTRIES:
                return os.path.relpath(Path(parent, name), folder)
    return None


@contextmanager
def new_folder(path: Path, nbytes: int) -> Iterator[Path]:
    """Give a folder that takes the name `path` when the block ends well, and vanishes otherwise.

    What had that name exchanges places with it and is removed afterwards, so that a crash loses neither.
    Left-overs of conversions that were killed are removed. RunFailed when the disk has no room for
    `nbytes`, or refuses.
    """
    path = path.absolute()
    made = _make_parents(path.parent)
    done = False
    try:
        _remove_leftovers(path)
        _require_space(path, nbytes)
        with _partial_folder(path) as folder:
            yield folder
            _put_in_place(folder, path)
            done = True
    except OSError as error:
        raise RunFailed(f"cannot be written: {error.strerror}", where=path) from error
    except BridgeError as error:
        if isinstance(error.where, Path) and ".partial" in str(error.where):
            error.where = path  # the folder's temporary name means nothing to the user
        raise
    finally:
        if not done:
            for parent in made:
                with suppress(OSError):
                    parent.rmdir()


def _make_parents(parent: Path) -> list[Path]:
    """Make a folder; return what had to be made, the innermost first."""
    missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFailed(f"cannot be made: {error.strerror}", where=parent) from error
    return missing


def _require_space(path: Path, nbytes: int) -> None:
    free = shutil.disk_usage(path.parent).free
    if nbytes > free:
        raise RunFailed(f"needs {nbytes:,} bytes, but the disk has {free:,} free", where=path)


@contextmanager
def _partial_folder(path: Path) -> Iterator[Path]:
    """Give a folder beside `path`, locked as long as this process writes it."""
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent))
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        yield folder
    finally:
        os.close(handle)
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(path: Path) -> None:
    """Remove the unfinished folders of conversions to `path` that no longer run."""
    for leftover in path.parent.glob(f".{_literal(path.name)}.*.partial"):
        with suppress(OSError):
            handle = os.open(leftover, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(leftover, ignore_errors=True)
            finally:
                os.close(handle)


def _literal(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _put_in_place(folder: Path, path: Path) -> None:
    """Give `folder` the name `path`, on the disk when this returns."""
    folder.chmod(0o777 & ~umask())
    for parent, _, _ in os.walk(folder):
        sync_folder(Path(parent))
    if not os.path.lexists(path):
        folder.rename(path)
        sync_folder(path.parent)
        return
    _exchange(folder, path)
    sync_folder(path.parent)


def _exchange(first: Path, second: Path) -> None:
    """Let two folders exchange their names, at once where the system can (Linux), else one by one."""
    if _renameat2 is not None:
        names = os.fsencode(first), os.fsencode(second)
        if _renameat2(_HERE, names[0], _HERE, names[1], _RENAME_EXCHANGE) == 0:
            return
    aside = first.with_suffix(".old")
    second.rename(aside)
    try:
        first.rename(second)
    except BaseException:
        aside.rename(second)
        raise
    aside.rename(first)


def umask() -> int:
    """Return the permissions that this process withholds from new files."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
