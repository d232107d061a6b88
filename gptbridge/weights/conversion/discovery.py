"""Which files make up a checkpoint: one, or one for each tensor- and pipeline-parallel rank."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gptbridge.errors import BadInput

# Single files by name, the first that exists.
_SINGLE = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "model_state.pdparams",
    "model.pdparams",
)
# Otherwise the only file with one of these endings.
_SUFFIXES = (".safetensors", ".pdparams", ".ckpt", ".bin", ".pt", ".pth")

# dialect, pattern of a rank's folder or file (groups: tensor rank, pipeline rank), files inside it
_RANKED = (
    ("megatron", re.compile(r"mp_rank_(\d{2})(?:_(\d{3}))?"), ("model_optim_rng.pt", "model_rng.pt")),
    ("modelscope", re.compile(r"mp_rank_(\d{2})_model_states\.pt"), ()),
    ("fleetx", re.compile(r"mp_(\d{2,})_sharding_00_pp_(\d{2,})"), ("model.pdparams",)),
)
_MINDSPORE_RANK = re.compile(r"rank_(\d+)")
_STEP = re.compile(r"-(\d+)_(\d+)$")


@dataclass(frozen=True, slots=True)
class RankFile:
    """The file of one rank."""

    path: Path
    tensor: int = 0
    pipeline: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """The weight files of a checkpoint; `dialect` where their places alone tell it."""

    root: Path
    files: tuple[RankFile, ...]
    dialect: str | None = None


def find_files(path: Path) -> Found:
    """Return the weight files of the checkpoint at `path`, a file or a folder.

    BadInput when there is none, when there are several and no rule to choose, or when a rank is absent.
    """
    if not path.is_dir():
        if not path.exists():
            raise BadInput("no such file or folder", where=path)
        return Found(path.parent, (RankFile(path),))
    folder = _iteration(path)
    for place in (folder, folder / "model"):
        for dialect, pattern, inner in _RANKED:
            if files := _ranked(place, pattern, inner):
                return Found(path, _whole_grid(files, path), dialect)
    if ranks := _mindspore(folder):
        return Found(path, ranks, "mindspore")
    return Found(path, (RankFile(_single(folder)),))


def _iteration(root: Path) -> Path:
    """Follow Megatron's latest_checkpointed_iteration.txt to the folder of that iteration."""
    pointer = root / "latest_checkpointed_iteration.txt"
    if not pointer.is_file():
        return root
    with pointer.open("rb") as file:
        text = file.read(64).decode(errors="replace").strip()
    if text != "release" and not (text.isascii() and text.isdigit()):
        raise BadInput(f"holds {text!r}", where=pointer, allowed="release or a number")
    folder = root / (text if text == "release" else f"iter_{int(text):07d}")
    if not folder.is_dir():
        raise BadInput(f"points to {folder.name}, which is not there", where=pointer)
    return folder


def _ranked(folder: Path, pattern: re.Pattern[str], inner: tuple[str, ...]) -> list[RankFile]:
    if not folder.is_dir():
        return []
    files = []
    for entry in sorted(folder.iterdir()):
        match = pattern.fullmatch(entry.name)
        if not match:
            continue
        ranks = [int(group or 0) for group in match.groups()]
        candidates = [entry / name for name in inner] if inner else [entry]
        weights = next((file for file in candidates if file.is_file()), None)
        if weights is None:
            raise BadInput(f"holds no {' or '.join(inner)}", where=entry)
        files.append(RankFile(weights, *ranks))
    return files


def _whole_grid(files: list[RankFile], where: Path) -> tuple[RankFile, ...]:
    held = {(file.tensor, file.pipeline) for file in files}
    tensor, pipeline = (max(rank) + 1 for rank in zip(*held, strict=True))
    for t in range(min(tensor, len(files) + 1)):
        for p in range(min(pipeline, len(files) + 1)):
            if (t, p) not in held:
                raise BadInput(f"the file of tensor rank {t}, pipeline rank {p} is missing", where=where)
    return tuple(sorted(files, key=lambda file: (file.pipeline, file.tensor)))


def _mindspore(folder: Path) -> tuple[RankFile, ...]:
    ranks = {
        int(match.group(1)): entry
        for entry in folder.iterdir()
        if (match := _MINDSPORE_RANK.fullmatch(entry.name)) and entry.is_dir()
    }
    for number in range(len(ranks)):
        if number not in ranks:
            raise BadInput(f"rank_{number} is missing", where=folder)
    return tuple(RankFile(_newest(entry), tensor=number) for number, entry in sorted(ranks.items()))


def _newest(folder: Path) -> Path:
    """Return the checkpoint of the last epoch and step, as MindSpore numbers them: NAME-EPOCH_STEP.ckpt."""
    files = [entry for entry in folder.iterdir() if entry.suffix in (".ckpt", ".safetensors")]
    if not files:
        raise BadInput("holds no .ckpt or .safetensors", where=folder)

    def step(file: Path) -> tuple[int, ...]:
        match = _STEP.search(file.stem)
        return tuple(int(group) for group in match.groups()) if match else (-1,)

    return max(sorted(files), key=step)


def _single(folder: Path) -> Path:
    for name in _SINGLE:
        if (folder / name).is_file():
            return folder / name
    for suffix in _SUFFIXES:
        files = sorted(entry for entry in folder.iterdir() if entry.suffix == suffix and entry.is_file())
        if len(files) == 1:
            return files[0]
        if files:
            names = ", ".join(file.name for file in files[:4])
            raise BadInput(f"holds several {suffix} files: {names}", where=folder, hint="Name one of them")
    raise BadInput(
        "holds no weights",
        where=folder,
        allowed=f"{', '.join(_SINGLE)}, a single {' '.join(_SUFFIXES)}, or the folders of ranks",
    )
