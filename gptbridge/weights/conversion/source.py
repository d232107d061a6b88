"""A checkpoint of any dialect, opened: its model, and its canonical weights in pieces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptbridge.errors import BadInput, printable
from gptbridge.weights.configs.reading import Declared, build_model
from gptbridge.weights.conversion.declaring import declared_beside
from gptbridge.weights.conversion.discovery import RankFile, find_files
from gptbridge.weights.formats import STORAGE_DTYPES, TensorInfo, WeightFile, open_weights
from gptbridge.weights.layouts.axes import CUT, Axes, letter_sizes
from gptbridge.weights.layouts.boxes import Box, Piece, gather, slabs
from gptbridge.weights.layouts.matching import Match, best_match, require_whole, solve_sizes
from gptbridge.weights.layouts.mindformers import LORA
from gptbridge.weights.layouts.registry import layouts_of
from gptbridge.weights.layouts.rules import NativeTensor, canonical_axes
from gptbridge_specs import ModelSpec

# Dialects whose embedding is padded to a round size that the configuration may not state.
PADDED = ("megatron", "modelscope", "fleetx", "mindspore")
_COMPARED_ITEMS = 1 << 20  # replicated tensors up to this size are compared between ranks


@dataclass(frozen=True, slots=True)
class CanonicalWeight:
    """One weight of the checkpoint: where its parts are, and in which element type."""

    name: str
    dtype: str
    pieces: tuple[Piece, ...]
    origins: tuple[tuple[WeightFile, str], ...]  # the file and tensor of each piece


@dataclass
class Source:
    """An open checkpoint. `sizes` are those of the stored tensors: `v` counts padded rows too."""

    path: Path
    dialect: str
    variant: str
    model: ModelSpec
    sizes: Mapping[str, int]
    weights: Mapping[str, CanonicalWeight]
    files: tuple[RankFile, ...]
    opened: tuple[WeightFile, ...]
    dropped: tuple[str, ...]
    lora: Mapping[str, tuple[WeightFile, str]] = field(default_factory=dict)
    config_file: str = ""


@dataclass(frozen=True, slots=True)
class _Rank:
    file: RankFile
    weights: WeightFile


def open_source(
    path: Path,
    stack: ExitStack,
    *,
    dialect: str | None = None,
    given: Declared | None = None,
) -> Source:
    """Open the checkpoint at `path`; `stack` closes it.

    `dialect` restricts what it may be; `given` states fields of the model that win over the files'.
    BadInput for anything that is missing, left over or contradictory.
    """
    found = find_files(path)
    ranks = [_Rank(file, stack.enter_context(open_weights(file.path))) for file in found.files]
    stages = _stages(ranks)
    names = [[name for name in stage[0].weights.tensors if not LORA.fullmatch(name)] for stage in stages]
    version = _checkpoint_version(ranks[0].weights)
    layouts = layouts_of(dialect or found.dialect, checkpoint_version=version)
    match = require_whole(best_match(layouts, names), path)
    declared, config_file = declared_beside(found.root, ranks[0].weights, match.layout.dialect)
    sizes = _sizes(match, stages, path)
    model = _model(match, sizes, declared, given or Declared(), path)
    sizes = {**letter_sizes(model, num_labels=sizes.get("c", 1)), "v": sizes["v"]}
    weights = _weights(match, stages, sizes, path)
    if "lm_head.weight" in weights and _equal(weights["lm_head.weight"], weights["wte.weight"], sizes):
        del weights["lm_head.weight"]
    tied = "lm_head.weight" not in weights
    if not tied and declared.fields.get("tie_word_embeddings", False):
        raise BadInput(
            f"{declared.where} says tie_word_embeddings, but the head is not the embedding", where=path
        )
    return Source(
        path,
        match.layout.dialect,
        match.layout.variant,
        model.model_copy(update={"tie_word_embeddings": tied}),
        sizes,
        weights,
        found.files,
        tuple(rank.weights for rank in ranks),
        match.dropped,
        {n: (r.weights, n) for r in ranks for n in r.weights.tensors if LORA.fullmatch(n)},
        config_file,
    )


def _stages(ranks: Sequence[_Rank]) -> list[list[_Rank]]:
    """Return the tensor ranks of each pipeline stage, in order."""
    count = max(rank.file.pipeline for rank in ranks) + 1
    return [[rank for rank in ranks if rank.file.pipeline == stage] for stage in range(count)]


def _checkpoint_version(weights: WeightFile) -> int:
    """Return Megatron's checkpoint_version; a file without one is version 0, as Megatron reads it."""
    tree = weights.tree
    value = tree.get("checkpoint_version", 0) if isinstance(tree, dict) else 0
    if value in (0, 1, 2, 3) and not isinstance(value, bool):
        return int(value)  # type: ignore[arg-type]
    raise BadInput(f"checkpoint_version is {printable(value)}", where=weights.path, allowed="0, 1, 2, 3")


def _global_shape(native: NativeTensor, info: TensorInfo, ranks: int) -> tuple[int, ...]:
    """Return the shape that the shards of all tensor ranks make together."""
    cut = native.axes.cut
    if cut is None or len(info.shape) != len(native.axes.groups):
        return info.shape
    return tuple(
        length * ranks if cut in group else length
        for group, length in zip(native.axes.groups, info.shape, strict=True)
    )


def _sizes(match: Match, stages: Sequence[Sequence[_Rank]], where: Path) -> dict[str, int]:
    tensors = [
        (name, native.axes, _global_shape(native, stages[stage][0].weights.tensors[name], len(stages[stage])))
        for (stage, name), native in match.natives.items()
    ]
    return solve_sizes(tensors, {}, where)


def _model(
    match: Match, sizes: Mapping[str, int], declared: Declared, given: Declared, where: Path
) -> ModelSpec:
    stored = {
        "hidden_size": sizes["i"],
        "num_layers": match.num_layers,
        "max_position_embeddings": sizes["t"],
        "ffn_hidden_size": sizes["f"],
    }
    said = declared.merged(given)
    for name, value in stored.items():
        if said.fields.get(name, value) not in (value, None):
            raise BadInput(
                f"{said.where} says {name}={printable(said.fields[name])}, but the tensors say {value}",
                where=where,
            )
    rows = sizes["v"]
    vocabulary = said.fields.get("vocab_size", rows)
    padded = match.layout.dialect in PADDED or "vocab_size" in given.fields
    if vocabulary != rows and not (padded and type(vocabulary) is int and 0 < vocabulary < rows):
        raise BadInput(
            f"{said.where} says vocab_size={printable(vocabulary)}, but the embedding has {rows} rows",
            where=where,
        )
    return build_model({**said.fields, **stored, "vocab_size": vocabulary}, where)


def _weights(
    match: Match, stages: Sequence[Sequence[_Rank]], sizes: Mapping[str, int], where: Path
) -> dict[str, CanonicalWeight]:
    found: dict[str, list[tuple[Piece, WeightFile, str]]] = {}
    for (stage, name), native in match.natives.items():
        ranks = stages[stage]
        for number, rank in enumerate(ranks):
            info = _same_tensor(name, ranks[0].weights, rank.weights)
            box = _box(native, number if native.axes.cut else 0, len(ranks), sizes, where)
            _check_shape(native, info, box, rank.weights.path)
            piece = Piece(box, native.box_axes, _reader(rank.weights, name))
            found.setdefault(native.canonical, []).append((piece, rank.weights, name))
            if native.axes.cut is None:
                _require_replicas(name, ranks)
                break
    return {name: _weight(name, parts) for name, parts in found.items()}


def _weight(name: str, parts: Sequence[tuple[Piece, WeightFile, str]]) -> CanonicalWeight:
    dtypes = {weights.tensors[tensor].dtype for _, weights, tensor in parts}
    _, weights, tensor = parts[0]
    dtype = weights.tensors[tensor].dtype
    if len(dtypes) > 1:
        raise BadInput(f"{printable(tensor)} and its other parts differ in type", where=weights.path)
    if dtype not in ("float32", "float16", "bfloat16", "float64"):
        raise BadInput(
            f"{printable(tensor)} is {dtype}",
            where=weights.path,
            allowed="float32, float16, bfloat16, float64",
        )
    return CanonicalWeight(
        name,
        dtype,
        tuple(piece for piece, _, _ in parts),
        tuple((file, tensor) for _, file, tensor in parts),
    )


def _equal(first: CanonicalWeight, second: CanonicalWeight, sizes: Mapping[str, int]) -> bool:
    """Tell whether two weights of the same axes hold the same bytes; copies a slab of each at a time."""
    layout = canonical_axes(first.name)
    whole = {letter: (0, sizes[letter]) for letter in layout.letters}
    stored = STORAGE_DTYPES[first.dtype]
    return first.dtype == second.dtype and all(
        gather(box, layout, first.pieces, stored).tobytes()
        == gather(box, layout, second.pieces, stored).tobytes()
        for box in slabs(whole, layout, _COMPARED_ITEMS)
    )


def _reader(weights: WeightFile, name: str) -> Any:
    return lambda: weights.read(name)


def _same_tensor(name: str, first: WeightFile, other: WeightFile) -> TensorInfo:
    info = other.tensors.get(name)
    if info is None:
        raise BadInput(f"{printable(name)} is missing, but {first.path.name} has it", where=other.path)
    if info.shape != first.tensors[name].shape:
        raise BadInput(
            f"{printable(name)} has shape {info.shape}, in {first.path} {first.tensors[name].shape}",
            where=other.path,
        )
    return info


def _box(native: NativeTensor, rank: int, ranks: int, sizes: Mapping[str, int], where: Path) -> Box:
    """Return what the tensor of one rank holds of the canonical weight."""
    letters = canonical_axes(native.canonical).letters
    box = {letter: (0, sizes[letter]) for letter in letters}
    cut = native.axes.cut
    if cut is not None and ranks > 1:
        if sizes[cut] % ranks:
            raise BadInput(f"{sizes[cut]} ({_MEANING[cut]}) cannot be cut for {ranks} ranks", where=where)
        share = sizes[cut] // ranks
        box[cut] = (rank * share, (rank + 1) * share)
    if native.part is not None:
        box["p"] = (native.part, native.part + 1)
    return box


_MEANING = dict(zip(CUT, ("attention heads", "feed-forward width", "vocabulary rows"), strict=True))


def _check_shape(native: NativeTensor, info: TensorInfo, box: Box, where: Path) -> None:
    axes: Axes = native.axes
    expected = axes.shape({letter: stop - start for letter, (start, stop) in box.items()})
    if info.shape != expected:
        raise BadInput(f"{printable(info.name)} has shape {info.shape}, not {expected}", where=where)


def _require_replicas(name: str, ranks: Sequence[_Rank]) -> None:
    """Refuse ranks whose copies of an uncut tensor differ: they are not one checkpoint."""
    first = ranks[0].weights
    if math.prod(first.tensors[name].shape) > _COMPARED_ITEMS:
        return
    for rank in ranks[1:]:
        _same_tensor(name, first, rank.weights)
        if not np.array_equal(first.read(name), rank.weights.read(name)):
            raise BadInput(
                f"{printable(name)} differs from the one in {first.path}: not ranks of one checkpoint",
                where=rank.weights.path,
            )
