"""Which files make up a checkpoint: one, or one for each tensor- and pipeline-parallel rank."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from gptbridge.errors import BadInput, printable
from gptbridge.files import list_folder, read_limited
from gptbridge.weights.canonical.cutting import Stage
from gptbridge.weights.dialects.dialect import Dialect
from gptbridge.weights.dialects.files import Pointer, Ranked
from gptbridge.weights.dialects.registry import known_dialects
from gptbridge.weights.formats import WeightFile

# Where no dialect knows a name: the only file with one of these endings.
_SUFFIXES = (".safetensors", ".pdparams", ".ckpt", ".bin", ".pt", ".pth", ".pkl")
_POINTER_LIMIT = 1 << 10  # bytes

RankStages = Callable[[Sequence[WeightFile], Path, Path | None], list[Stage]]


@dataclass(frozen=True, slots=True)
class Found:
    """The weight files of a checkpoint; `dialect` where their places alone tell it.

    `files` are ordered by pipeline stage, then tensor rank. Where only the files' contents tell those,
    `stages` finds them, and the degrees are 1.
    """

    root: Path
    files: tuple[Path, ...]
    dialect: Dialect | None = None
    tensor: int = 1
    pipeline: int = 1
    stages: RankStages | None = None


def find_files(path: Path) -> Found:
    """Return the weight files of the checkpoint at `path`, a file or a folder.

    BadInput when there is none, when there are several and no rule to choose, or when a rank is absent.
    """
    dialects = known_dialects().dialects
    if not path.is_dir():
        return Found(path.parent, (_whole(path, dialects),))
    folder = _pointed_to(path, dialects)
    inner = dict.fromkeys(name for dialect in dialects for name in dialect.files.folders)
    for place in (folder, *(folder / name for name in inner)):
        if place.is_dir() and (found := _ranks(path, place, dialects)):
            return found
    names = list_folder(folder)
    _refuse_unread(folder, names, dialects)
    for dialect in dialects:
        own = dialect.files.rank_folders
        if own and (files := own.find(folder, names)):
            return Found(path, files, dialect, stages=own.stages)
    return Found(path, (_single(folder, names, dialects),))


def _whole(path: Path, dialects: Sequence[Dialect]) -> Path:
    """Return what says how a file belongs with others that lie beside it, or else the file."""
    for dialect in dialects:
        for form in dialect.files.unread:
            if re.fullmatch(form.pattern, path.name) and path.with_name(form.unless).is_file():
                return path.with_name(form.unless)
    return path


def _pointed_to(root: Path, dialects: Sequence[Dialect]) -> Path:
    """Follow the first pointer file in `root` to the folder that it names."""
    for dialect in dialects:
        for pointer in dialect.files.pointers:
            if (root / pointer.name).is_file():
                return _follow(root, pointer)
    return root


def _follow(root: Path, pointer: Pointer) -> Path:
    where = root / pointer.name
    text = read_limited(where, _POINTER_LIMIT, "the name of a folder").decode(errors="replace").strip()
    names = pointer.folders_of(text)
    if not names:
        raise BadInput(f"holds {printable(text)!r}", where=where, allowed=pointer.allowed)
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        raise BadInput(f"points to {' or '.join(map(printable, names))}, which is not there", where=where)
    return folder


def _ranks(root: Path, place: Path, dialects: Sequence[Dialect]) -> Found | None:
    """Return the ranks that lie in `place`, by the first dialect whose places they are."""
    names = list_folder(place)
    for dialect in dialects:
        for ranked in dialect.files.ranked:
            if files := _ranked(place, names, ranked):
                return _whole_grid(files, root, dialect if ranked.tells_dialect else None)
    return None


def _ranked(folder: Path, names: Iterable[str], ranked: Ranked) -> dict[tuple[int, int], Path]:
    """Return the file of each (pipeline rank, tensor rank)."""
    files: dict[tuple[int, int], Path] = {}
    for name in names:
        match = ranked.pattern.fullmatch(name)
        if not match:
            continue
        tensor, pipeline = ([int(group or 0) for group in match.groups()] + [0])[:2]
        entry = folder / name
        candidates = [entry / file for file in ranked.inner] if ranked.inner else [entry]
        weights = next((file for file in candidates if file.is_file()), None)
        if weights is None and any((entry / file).is_file() for file in ranked.passed_over):
            continue
        if weights is None:
            raise BadInput(f"holds no {' or '.join(ranked.inner) or 'file'}", where=entry)
        if (pipeline, tensor) in files:
            raise BadInput(f"is the same rank as {printable(files[pipeline, tensor])}", where=weights)
        files[pipeline, tensor] = weights
    return files


def _whole_grid(ranks: dict[tuple[int, int], Path], where: Path, dialect: Dialect | None) -> Found:
    pipeline, tensor = (max(rank) + 1 for rank in zip(*ranks, strict=True))
    for p in range(min(pipeline, len(ranks) + 1)):
        for t in range(min(tensor, len(ranks) + 1)):
            if (p, t) not in ranks:
                raise BadInput(f"the file of tensor rank {t}, pipeline rank {p} is missing", where=where)
    return Found(where, tuple(ranks[key] for key in sorted(ranks)), dialect, tensor, pipeline)


def _refuse_unread(folder: Path, names: Sequence[str], dialects: Sequence[Dialect]) -> None:
    """Refuse a form of checkpoint that some dialect has and nobody reads."""
    for dialect in dialects:
        for form in dialect.files.unread:
            if form.unless not in names and any(re.fullmatch(form.pattern, name) for name in names):
                raise BadInput(form.problem, where=folder, hint=form.hint)


def _single(folder: Path, names: Sequence[str], dialects: Sequence[Dialect]) -> Path:
    known = dict.fromkeys(name for dialect in dialects for name in dialect.files.single)
    for pattern in known:
        name = next((name for name in names if fnmatchcase(name, pattern)), pattern)
        if name in names or ("/" in name and (folder / name).is_file()):
            return folder / name
    for suffix in _SUFFIXES:
        files = [name for name in names if Path(name).suffix == suffix and (folder / name).is_file()]
        if len(files) == 1:
            return folder / files[0]
        if files:
            listed = ", ".join(printable(name, 60) for name in files[:4])
            raise BadInput(f"holds several {suffix} files: {listed}", where=folder, hint="Name one of them")
    raise BadInput(
        "holds no weights",
        where=folder,
        allowed=f"{', '.join(known)}, a single {' '.join(_SUFFIXES)}, or the folders of ranks",
    )
