"""Rank folders, `rank_N/NAME-EPOCH_STEP.ckpt`: their files, and which part of which stage each holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from gptbridge.errors import BadInput, printable
from gptbridge.files import list_folder
from gptbridge.weights.canonical.cutting import LetterCutting, Stage
from gptbridge.weights.dialects.mindspore.cutting import StrategyCutting
from gptbridge.weights.dialects.mindspore.strategies import Strategy, TensorLayout
from gptbridge.weights.dialects.mindspore.strategy_files import SUFFIXES, read_strategies
from gptbridge.weights.formats import WeightFile
from gptbridge.weights.layouts.wrappers import peeled

_RANK = re.compile(r"rank_([0-9]{1,5})")
_STEP = re.compile(r"-([0-9]{1,9})_([0-9]{1,9})$")
_WEIGHTS = (".ckpt", ".safetensors")
_BACKBONE = "backbone."  # before the names of all but a bare GPT2Model
_LAYER = re.compile(r"(?:backbone\.)?blocks\.(\d+)\.")
_QUERY = "blocks.{}.attention.dense1.weight"  # (m g d) i
_WIDENING = "blocks.{}.output.mapping.weight"  # i f
_EMBEDDING = "embedding.word_embedding.embedding_table"
_COMPARED_BYTES = 1 << 20
_MAX_FILES = 1 << 16
_HINT = "Give the strategy files of the run: --strategy PATH"


def find_ranks(folder: Path, names: Sequence[str]) -> tuple[Path, ...]:
    """Return each rank's file of the newest step that all ranks have; () where `folder` holds no ranks."""
    ranks = {
        int(match.group(1)): folder / name
        for name in names
        if (match := _RANK.fullmatch(name)) and (folder / name).is_dir()
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
        if file.suffix not in _WEIGHTS or not file.is_file():
            continue
        match = _STEP.search(file.stem)
        step = tuple(int(group) for group in match.groups()) if match else ()
        if step in files:
            both = f"{printable(files[step].name, 60)} and {printable(name, 60)}"
            raise BadInput(f"holds {both}: one too many", where=folder)
        files[step] = file
    if not files:
        raise BadInput(f"holds no {' or '.join(_WEIGHTS)}", where=folder)
    return files


def find_strategy_files(root: Path, given: Path | None) -> list[Path]:
    """Return the strategy files: those at `given`, or in a folder strategy/ in `root` or beside it."""
    if given is not None and not given.is_dir():
        return [given]
    for folder in (given,) if given else (root / "strategy", root.absolute().parent / "strategy"):
        if folder.is_dir():
            files = sorted(entry for entry in folder.iterdir() if entry.suffix in SUFFIXES)
            if len(files) > _MAX_FILES:
                raise BadInput(f"holds {len(files)} files", where=folder, allowed=f"at most {_MAX_FILES}")
            if files:
                return files
    if given is not None:
        raise BadInput("holds no strategy file", where=given, allowed="*.ckpt or *.json")
    return []


def rank_stages(ranks: Sequence[WeightFile], root: Path, strategy: Path | None) -> list[Stage]:
    """Return the stages of the ranks' files, in order.

    With strategy files they tell all. Without, ranks that hold the same layers are one stage, the shape
    of the query matrix tells how often it is cut, and further ranks are copies.
    """
    files = find_strategy_files(root, strategy)
    if files:
        return _by_strategy(ranks, read_strategies(files), root)
    return _by_shape(ranks, root)


def _by_strategy(ranks: Sequence[WeightFile], strategy: Strategy, root: Path) -> list[Stage]:
    if set(strategy) != set(range(len(strategy))):
        raise BadInput(f"the strategy files are of stages {sorted(strategy)} only", where=root)
    share, rest = divmod(len(ranks), len(strategy))
    for stage, layouts in strategy.items():
        wrong = next((layout for layout in layouts.values() if layout.num_devices != share), None)
        if rest or wrong:
            devices = wrong.num_devices if wrong else len(ranks)
            raise BadInput(
                f"{len(ranks)} ranks in {len(strategy)} stages, "
                f"but the strategy of stage {stage} is for {devices}",
                where=root,
            )
    return [
        Stage(
            tuple(ranks[stage * share : (stage + 1) * share]),
            _names_of_stage(ranks[stage * share], stage, strategy),
            StrategyCutting(strategy[stage], root),
        )
        for stage in range(len(strategy))
    ]


def _names_of_stage(first: WeightFile, stage: int, strategy: Strategy) -> tuple[str, ...]:
    """Return the tensors of a stage: MindSpore may save those of other stages too, never trained there."""
    elsewhere: set[str] = set()
    for number, layouts in strategy.items():
        if number != stage:
            elsewhere.update(layouts)
    own: Mapping[str, TensorLayout] = strategy[stage]
    return tuple(name for name in first.tensors if name in own or name not in elsewhere)


def _by_shape(ranks: Sequence[WeightFile], root: Path) -> list[Stage]:
    layers = [frozenset(_layers(rank)) for rank in ranks]
    order = sorted(set(layers), key=lambda held: min(held, default=0))
    share = len(ranks) // len(order)
    expected = [held for held in order for _ in range(share)]
    if layers != expected:
        raise BadInput(
            "the ranks' layers do not fall into pipeline stages, one after the other",
            where=root,
            hint=_HINT,
        )
    stages = []
    for number, held in enumerate(order):
        own = tuple(ranks[number * share : (number + 1) * share])
        degree = _degree(own, min(held, default=0), root)
        whole = frozenset(("wte.weight",) if _holds_copies(own[:degree]) else ())
        stages.append(Stage(own, tuple(own[0].tensors), LetterCutting(degree, root, whole)))
    return stages


def _layers(rank: WeightFile) -> Iterable[int]:
    return (int(match.group(1)) for name in rank.tensors if (match := _LAYER.match(peeled(name))))


def _named(name: str, rank: WeightFile) -> str:
    """Return the name that a tensor of GPT2Model has in a rank's file."""
    names = (name, _BACKBONE + name)
    return next((own for own in rank.tensors if peeled(own) in names), name)


def _degree(ranks: Sequence[WeightFile], layer: int, root: Path) -> int:
    """Return over how many ranks the query matrix, of as many rows as columns, is cut."""
    names = [_named(name.format(layer), ranks[0]) for name in (_QUERY, _WIDENING)]
    query, widening = (info.shape if (info := ranks[0].tensors.get(name)) else () for name in names)
    if len(query) != 2 or len(widening) != 2:
        return 1  # what is missing or malformed is named later
    rows, columns = query
    degree = columns // rows if rows else 0
    if degree < 1 or rows * degree != columns or len(ranks) % degree or widening[0] != columns:
        raise BadInput(
            f"{names[0]} has shape {query}, {names[1]} {widening}: "
            f"that does not tell how the {len(ranks)} ranks of a stage are cut",
            where=root,
            hint=_HINT,
        )
    return degree


def _holds_copies(ranks: Sequence[WeightFile]) -> bool:
    """Tell whether the ranks' embedding tables are the same one: then it is not cut."""
    name = _named(_EMBEDDING, ranks[0])
    if not all(name in rank.tensors for rank in ranks):
        return False
    infos = {(rank.tensors[name].shape, rank.tensors[name].dtype) for rank in ranks}
    if len(infos) > 1:
        return False
    info = ranks[0].tensors[name]
    if len(info.shape) != 2 or not info.num_elements:
        return False
    rows = max(1, _COMPARED_BYTES * info.shape[0] // info.nbytes)
    first = ranks[0].rows(name, 0, rows)
    return all(np.array_equal(first, rank.rows(name, 0, rows)) for rank in ranks[1:])
