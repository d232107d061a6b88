"""Which files make up a checkpoint: one, or one for each tensor- and pipeline-parallel rank."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from gptbridge.errors import BadInput, printable

# Single files by name, the first that exists.
_SINGLE = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "model_state.pdparams.index.json",
    "model_state.pdparams",
    "model.pdparams",
    "model_optim_rng.pt",
)
# Otherwise the only file with one of these endings.
_SUFFIXES = (".safetensors", ".pdparams", ".ckpt", ".bin", ".pt", ".pth")

# dialect, if the place tells it; pattern of a rank's folder or file (groups: tensor rank, pipeline rank);
# files inside it
_RANKED = (
    (
        "megatron",
        re.compile(r"mp_rank_([0-9]{2,5})(?:_([0-9]{3,5}))?"),
        ("model_optim_rng.pt", "model_rng.pt"),
    ),
    ("modelscope", re.compile(r"mp_rank_([0-9]{2,5})_model_states\.pt"), ()),
    ("fleetx", re.compile(r"mp_([0-9]{2,5})_sharding_00_pp_([0-9]{2,5})"), ("model.pdparams",)),
    # PaddleNLP's; a fused qkv in them lies as FleetX's does, so the place alone tells no dialect.
    (None, re.compile(r"model_state\.tp([0-9]{2,5})(?:_pp([0-9]{2,5}))?\.pdparams"), ()),
)
_MINDSPORE_RANK = re.compile(r"rank_([0-9]{1,5})")
_MINDSPORE_SUFFIXES = (".ckpt", ".safetensors")
_STEP = re.compile(r"-([0-9]{1,9})_([0-9]{1,9})$")
_MAX_ENTRIES = 1 << 18


@dataclass(frozen=True, slots=True)
class Found:
    """The weight files of a checkpoint; `dialect` where their places alone tell it.

    `files` are ordered by pipeline stage, then tensor rank. For MindFormers' rank folders only the
    files' contents tell those: `by_rank` is set, and the degrees are 1.
    """

    root: Path
    files: tuple[Path, ...]
    dialect: str | None = None
    tensor: int = 1
    pipeline: int = 1
    by_rank: bool = False


def list_folder(folder: Path) -> list[str]:
    """Return the sorted names in a folder; BadInput for one that is absurdly full or cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, _MAX_ENTRIES + 1)]
    except OSError as error:
        raise BadInput(f"cannot be listed: {error.strerror}", where=folder) from error
    if len(names) > _MAX_ENTRIES:
        raise BadInput("holds too many files", where=folder, allowed=f"at most {_MAX_ENTRIES}")
    return sorted(names)


def find_files(path: Path) -> Found:
    """Return the weight files of the checkpoint at `path`, a file or a folder.

    BadInput when there is none, when there are several and no rule to choose, or when a rank is absent.
    """
    if not path.is_dir():
        return Found(path.parent, (path,))
    folder = _iteration(path)
    for place in (folder, folder / "model"):
        if not place.is_dir():
            continue
        names = list_folder(place)
        for dialect, pattern, inner in _RANKED:
            if ranks := _ranked(place, names, pattern, inner):
                return _whole_grid(ranks, path, dialect)
    names = list_folder(folder)
    if any(name.endswith(".distcp") for name in names):
        raise BadInput(
            "is a distributed checkpoint of PyTorch (.distcp), which is not read",
            where=folder,
            hint="Let Megatron save it again with --ckpt-convert-format torch --ckpt-convert-save FOLDER",
        )
    if files := _mindspore(folder, names):
        return Found(path, files, "mindspore", by_rank=True)
    return Found(path, (_single(folder, names),))


def _iteration(root: Path) -> Path:
    """Follow Megatron's latest_checkpointed_iteration.txt to the folder of that iteration."""
    pointer = root / "latest_checkpointed_iteration.txt"
    if not pointer.is_file():
        return root
    with pointer.open("rb") as file:
        text = file.read(64).decode(errors="replace").strip()
    if text != "release" and not (text.isascii() and text.isdigit()):
        raise BadInput(f"holds {printable(text)!r}", where=pointer, allowed="release or a number")
    folder = root / (text if text == "release" else f"iter_{int(text):07d}")
    if not folder.is_dir():
        raise BadInput(f"points to {folder.name}, which is not there", where=pointer)
    return folder


def _ranked(
    folder: Path, names: Iterable[str], pattern: re.Pattern[str], inner: tuple[str, ...]
) -> dict[tuple[int, int], Path]:
    """Return the file of each (pipeline rank, tensor rank)."""
    files: dict[tuple[int, int], Path] = {}
    for name in names:
        match = pattern.fullmatch(name)
        if not match:
            continue
        tensor, pipeline = ([int(group or 0) for group in match.groups()] + [0])[:2]
        entry = folder / name
        candidates = [entry / file for file in inner] if inner else [entry]
        weights = next((file for file in candidates if file.is_file()), None)
        if weights is None:
            raise BadInput(f"holds no {' or '.join(inner) or 'file'}", where=entry)
        if (pipeline, tensor) in files:
            raise BadInput(f"is the same rank as {printable(files[pipeline, tensor])}", where=weights)
        files[pipeline, tensor] = weights
    return files


def _whole_grid(ranks: dict[tuple[int, int], Path], where: Path, dialect: str | None) -> Found:
    pipeline, tensor = (max(rank) + 1 for rank in zip(*ranks, strict=True))
    for p in range(min(pipeline, len(ranks) + 1)):
        for t in range(min(tensor, len(ranks) + 1)):
            if (p, t) not in ranks:
                raise BadInput(f"the file of tensor rank {t}, pipeline rank {p} is missing", where=where)
    return Found(where, tuple(ranks[key] for key in sorted(ranks)), dialect, tensor, pipeline)


def _mindspore(folder: Path, names: Iterable[str]) -> tuple[Path, ...]:
    """Return each rank's file of the newest step that all ranks have."""
    ranks = {
        int(match.group(1)): folder / name
        for name in names
        if (match := _MINDSPORE_RANK.fullmatch(name)) and (folder / name).is_dir()
    }
    for number in range(len(ranks)):
        if number not in ranks:
            raise BadInput(f"rank_{number} is missing", where=folder)
    steps = [_by_step(ranks[number]) for number in range(len(ranks))]
    if not steps:
        return ()
    shared = set(steps[0]).intersection(*steps[1:])
    if not shared:
        raise BadInput("its rank folders have no step in common", where=folder)
    return tuple(files[max(shared)] for files in steps)


def _by_step(folder: Path) -> dict[tuple[int, ...], Path]:
    """Return a rank's checkpoints by (epoch, step), as MindSpore names them: NAME-EPOCH_STEP.ckpt."""
    files: dict[tuple[int, ...], Path] = {}
    for name in list_folder(folder):
        file = folder / name
        if file.suffix not in _MINDSPORE_SUFFIXES or not file.is_file():
            continue
        match = _STEP.search(file.stem)
        step = tuple(int(group) for group in match.groups()) if match else ()
        if step in files:
            both = f"{printable(files[step].name, 60)} and {printable(name, 60)}"
            raise BadInput(f"holds {both}: one too many", where=folder)
        files[step] = file
    if not files:
        raise BadInput(f"holds no {' or '.join(_MINDSPORE_SUFFIXES)}", where=folder)
    return files


def _single(folder: Path, names: Iterable[str]) -> Path:
    for name in _SINGLE:
        if name in names:
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
        allowed=f"{', '.join(_SINGLE)}, a single {' '.join(_SUFFIXES)}, or the folders of ranks",
    )
