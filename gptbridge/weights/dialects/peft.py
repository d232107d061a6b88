"""LoRA adapters in the form of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors.

GPT-2 has one matrix for q, k and v, so PEFT has one pair of factors for it: A (R, in), B (3H, R). Pairs
of q, k and v, of rank r each, become the blocks of one of rank R = r x pairs: A stacked, B
block-diagonal, alpha x pairs. Which blocks stand for which of q, k, v is noted in the file's metadata,
which PEFT ignores and drops, so that the way back finds the same pairs; without it the columns of B tell,
each of which then fills the rows of one of the three. A pair of PEFT's own is read as three that share A.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BadInput, printable
from gptbridge.files import read_json, write_json
from gptbridge.hub import fetching_name
from gptbridge.weights.architecture import LORA_A, LORA_B, LORA_TARGETS, sizes, weight_axes
from gptbridge.weights.canonical.casting import FLOATS, joint_type
from gptbridge.weights.canonical.lora import HEAD, QKV, Lora, labels_of
from gptbridge.weights.canonical.weight import CanonicalWeight
from gptbridge.weights.configs.numbers import finite_number
from gptbridge.weights.formats import Entry, TensorInfo, WeightFile, open_weights
from gptbridge.weights.formats.safetensors import write_safetensors
from gptbridge.weights.layouts.boxes import Piece
from gptbridge.weights.layouts.gpt2 import ADAPTED
from gptbridge_specs import ModelSpec

FOLDER = "adapter"
CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_WEIGHT_FILES = (WEIGHTS_FILE, "adapter_model.bin")
_BASE_FILES = tuple(
    f"{x}{end}" for x in ("model.safetensors", "pytorch_model.bin") for end in ("", ".index.json")
)
_PREFIX = "base_model.model.transformer."
_NAME = re.compile(
    r"base_model\.model\.(?:transformer\.)?h\.(0|[1-9][0-9]{0,5})\."
    rf"({'|'.join(map(re.escape, ADAPTED))})\.lora_([AB])\.weight"
)
_HEAD = "base_model.model.score.weight"  # of GPT2ForSequenceClassification, saved whole
_METADATA_KEY = "gptbridge.parts"
_PLAIN = re.compile(r"\^?[\w.]+")  # a key of a pattern that is a name, or the end of one
# Kinds of LoRA whose arithmetic is another one: only these values, or none, are read.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "lora_bias": (False,),
    "bias": ("none",),
    "modules_to_save": ([], ["classifier", "score"], ["score"]),
    "layer_replication": ([],),
    **{f"{kind}_config": ({},) for kind in ("arrow", "kasa", "monteclora", "velora")},
}


@dataclass(frozen=True, slots=True)
class _Site:
    """A linear layer of a block with its pair of factors; `scale` is what their product is multiplied by."""

    layer: int
    linear: str  # "attn.c_attn"
    names: Mapping[str, str]  # "A" and "B" -> tensor
    rank: int
    alpha: float
    scale: float


def adapter_alone(path: Path) -> Path | None:
    """Return the folder of an adapter without the weights that it changes, if `path` is that or its file."""
    folder = path.parent if path.name in _WEIGHT_FILES else path
    if not (folder / CONFIG_FILE).is_file() or any((folder / name).exists() for name in _BASE_FILES):
        return None
    return folder


def base_of(folder: Path) -> Path:
    """Return where the adapter in `folder` says that its base model lies; BadInput where nothing is there."""
    path = folder / CONFIG_FILE
    named = read_json(path).get("base_model_name_or_path")
    places = (Path(named), folder / named) if isinstance(named, str) and named else ()
    for place in places:
        if place.exists():
            return place
    problem = f"its base model {printable(named)} is not here" if named else "names no base model"
    fetching = fetching_name(named) if isinstance(named, str) else None
    on_hub = f" (--base {fetching}, if that is its name on Hugging Face)" if fetching else ""
    raise BadInput(
        problem,
        where=path,
        hint=f"Give --base CHECKPOINT, of any dialect{on_hub}; to train, --init-from CHECKPOINT",
    )


def read_adapter(root: Path, model: ModelSpec, stack: ExitStack, *, alpha: float | None) -> Lora | None:
    """Return the adapter in `root` or `root`/adapter, or None when there is none; `stack` closes it."""
    for folder in (root, root / FOLDER):
        if (folder / CONFIG_FILE).exists():
            return _read(folder, model, stack, alpha)
    return None


def _read(folder: Path, model: ModelSpec, stack: ExitStack, alpha: float | None) -> Lora:
    config = _configuration(folder / CONFIG_FILE)
    path = next((folder / name for name in _WEIGHT_FILES if (folder / name).exists()), None)
    if path is None:
        raise BadInput(f"holds no {' or '.join(_WEIGHT_FILES)}", where=folder)
    file = stack.enter_context(open_weights(path))
    sites = [_site(layer, linear, names, file, model, config, folder / CONFIG_FILE)
             for (layer, linear), names in _pairs(file, model).items()]  # fmt: skip
    columns = [_columns(file, site, model) for site in sites]
    first, rank = sites[0], max(len(own) for held in columns for own in held.values())
    weights: dict[str, CanonicalWeight] = {}
    for site, held in zip(sites, columns, strict=True):
        for target, own in held.items():
            for letter, factor in (("A", LORA_A), ("B", LORA_B)):
                name = f"h.{site.layer}.{LORA_TARGETS[target]}{factor}"
                share = site.scale / first.scale if letter == "B" else 1.0
                weights[name] = _weight(name, file, site.names[letter], target, own, share, model)
    stated = first.alpha * rank / (math.sqrt(first.rank) if config.get("use_rslora") else first.rank)
    return Lora(rank, alpha if alpha is not None else stated, weights, _head(file, model))


def _head(file: WeightFile, model: ModelSpec) -> CanonicalWeight | None:
    """Return the classifier's head in the file, if one is; BadInput for one of another width."""
    info = file.tensors.get(_HEAD)
    if info is None:
        return None
    if len(info.shape) != 2 or info.shape[1] != model.hidden_size or info.dtype not in FLOATS:
        raise BadInput(f"{_HEAD} is {info.dtype} {info.shape}", where=file.path)
    order, box = weight_axes(HEAD), {"c": (0, info.shape[0]), "i": (0, info.shape[1])}
    piece = Piece(box, order, "c", lambda start, stop: file.read(_HEAD)[start:stop])
    return CanonicalWeight(HEAD, info.dtype, (piece,))


def _configuration(path: Path) -> Mapping[str, Any]:
    """Return the adapter's configuration; BadInput for a kind of adapter that is not read."""
    config = read_json(path)
    kinds = {key: (False,) for key in config if key.startswith("use_") and key != "use_rslora"}
    for key, allowed in {**_FIXED, **kinds}.items():
        if config.get(key) is not None and config[key] not in allowed:
            problem = f"{printable(key)} is {printable(config[key], 60)}"
            raise BadInput(problem, where=path, allowed=str(allowed[0]))
    finite_number(config.get("lora_alpha"), "lora_alpha", path)
    return config


def _pairs(file: WeightFile, model: ModelSpec) -> dict[tuple[int, str], dict[str, str]]:
    """Return the names of each linear layer's factors; BadInput for what is none, and for half a pair."""
    pairs: dict[tuple[int, str], dict[str, str]] = {}
    for name in (name for name in file.tensors if name != _HEAD):
        match = _NAME.fullmatch(name)
        if match is None or int(match[1]) >= model.num_layers:
            allowed = f"LoRA of the layers' {', '.join(ADAPTED)}"
            raise BadInput(f"{printable(name)} is left over", where=file.path, allowed=allowed)
        pairs.setdefault((int(match[1]), match[2]), {})[match[3]] = name
    for (layer, linear), names in pairs.items():
        if len(names) < 2:
            raise BadInput(f"layer {layer} has half a pair of LoRA factors of {linear}", where=file.path)
    if not pairs:
        raise BadInput("holds no LoRA factors", where=file.path)
    return pairs


def _site(
    layer: int,
    linear: str,
    names: Mapping[str, str],
    file: WeightFile,
    model: ModelSpec,
    config: Mapping[str, Any],
    where: Path,
) -> _Site:
    """Return one linear layer; BadInput for factors of another shape than the model or the configuration."""
    rank = min(file.tensors[names["A"]].shape, default=0)
    for letter, shape in zip("AB", _shapes(linear, rank, model), strict=True):
        info = file.tensors[names[letter]]
        if rank < 1 or info.shape != shape or info.dtype not in FLOATS:
            problem = f"{printable(info.name)} is {info.dtype} {info.shape}, not {shape}"
            raise BadInput(problem, where=file.path)
    module = f"transformer.h.{layer}.{linear}"
    stated = _by_pattern(config, "rank_pattern", module, config.get("r"), where)
    if stated is not None and stated != rank:
        raise BadInput(f"{linear} of layer {layer} has rank {rank}, not {printable(stated, 20)}", where=where)
    alpha = finite_number(
        _by_pattern(config, "alpha_pattern", module, config["lora_alpha"], where), "alpha_pattern", where
    )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return _Site(layer, linear, names, rank, alpha, scale)


def _by_pattern(config: Mapping[str, Any], key: str, module: str, usual: Any, where: Path) -> Any:
    """Return what a pattern of PEFT says of `module`, whose name ends in one of its keys, or `usual`."""
    pattern = config.get(key) or {}
    if not isinstance(pattern, dict) or not all(_PLAIN.fullmatch(name) for name in pattern):
        raise BadInput(f"{key} is {printable(pattern, 60)}", where=where, allowed="names of layers")
    for name, value in pattern.items():
        if f".{module}".endswith(f".{name.removeprefix('^')}"):
            return value
    return usual


def _shapes(linear: str, rank: int, model: ModelSpec) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the shapes of PEFT's A and B for a linear layer."""
    parts, whole = ADAPTED[linear], sizes(model)
    into, out = weight_axes(f"h.0.{LORA_TARGETS[parts[0]]}.weight").shape(whole)
    return (rank, into), (len(parts) * out, rank)


def _columns(file: WeightFile, site: _Site, model: ModelSpec) -> dict[str, NDArray[np.intp]]:
    """Return which columns of B, and rows of A, are those of each part of a linear layer."""
    parts, every = ADAPTED[site.linear], np.arange(site.rank)
    if len(parts) == 1:
        return {parts[0]: every}
    used = file.read(site.names["B"]).reshape(len(parts), -1, site.rank).any(axis=1)
    noted = file.metadata.get(_METADATA_KEY, "")
    if (
        noted
        and not set(noted) - set(parts)
        and len(set(noted)) == len(noted)
        and site.rank % len(noted) == 0
    ):
        blocks = dict(zip(noted, np.split(every, len(noted)), strict=True))
        elsewhere = used.copy()
        for part, own in blocks.items():
            elsewhere[parts.index(part), own] = False
        if not elsewhere.any():  # else someone went on training it
            return blocks
    if (used.sum(axis=0) == 1).all():
        return {part: np.flatnonzero(row) for part, row in zip(parts, used, strict=True) if row.any()}
    return dict.fromkeys(parts, every)


def _weight(
    canonical: str,
    file: WeightFile,
    name: str,
    target: str,
    columns: NDArray[np.intp],
    share: float,
    model: ModelSpec,
) -> CanonicalWeight:
    """Return a factor of one part: its columns of PEFT's B, times `share`, or its rows of A."""
    order, dtype = weight_axes(canonical), file.tensors[name].dtype
    if share != 1 and dtype not in ("float32", "float64"):
        raise BadInput(f"layers of {dtype} that are scaled differently", where=file.path, allowed="float32")
    whole = {**sizes(model), "r": len(columns)}
    height = order.shape(whole)[0]
    first = height * (QKV.index(target) if target in QKV else 0)
    box = {letter: (0, whole[letter]) for letter in order.letters}

    def read(start: int, stop: int) -> NDArray[Any]:
        held = file.read(name)
        if canonical.endswith(LORA_A):
            return order.spread(held[columns], whole)[start:stop]
        own = held[first : first + height, columns]
        return order.spread(own if share == 1 else own * held.dtype.type(share), whole)[start:stop]

    return CanonicalWeight(canonical, dtype, (Piece(box, order, order.letters[0], read),))


def write_adapter(lora: Lora, model: ModelSpec, dtypes: Mapping[str, str], folder: Path) -> list[str]:
    """Write `folder`/adapter for the base model in `folder`; return the names of its files."""
    (folder / FOLDER).mkdir()
    write_adapter_files(lora, model, dtypes, folder / FOLDER)
    return [f"{FOLDER}/{CONFIG_FILE}", f"{FOLDER}/{WEIGHTS_FILE}"]


def write_adapter_files(
    lora: Lora,
    model: ModelSpec,
    dtypes: Mapping[str, str],
    folder: Path,
    *,
    base: str | None = None,
    dropout: float = 0.0,
) -> None:
    """Write the two files of an adapter into `folder`; `base` is where its base model lies."""
    parts = {x: held for x, every in ADAPTED.items() if (held := [y for y in every if y in lora.targets])}
    write_json(folder / CONFIG_FILE, _written(lora, parts, base, dropout))
    metadata = {"format": "pt", _METADATA_KEY: "".join(x for x in QKV if x in lora.targets)}
    entries = [
        entry
        for layer in lora.layers
        for linear, held in parts.items()
        for entry in _entries(lora, model, layer, linear, held, dtypes)
    ]
    if (head := lora.head) is not None:
        box = head.whole({"c": labels_of(head), "i": model.hidden_size})
        info = TensorInfo(_HEAD, dtypes[HEAD], (box["c"][1], box["i"][1]))
        entries.append((info, lambda: [head.read(box, weight_axes(HEAD), info.dtype)]))
    write_safetensors(folder / WEIGHTS_FILE, entries, metadata)


def _written(lora: Lora, parts: Mapping[str, list[str]], base: str | None, dropout: float) -> dict[str, Any]:
    """Return the configuration of an adapter of these parts of linear layers."""
    alpha = lora.require_alpha()
    pairs = {linear: len(held) for linear, held in parts.items()}
    usual = next(iter(pairs.values())) if len(pairs) == 1 else 1
    others = {linear: count for linear, count in pairs.items() if count != usual}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if lora.head is None else "SEQ_CLS",
        **({} if lora.head is None else {"modules_to_save": ["classifier", "score"]}),
        "base_model_name_or_path": base,
        "r": lora.rank * usual,
        "lora_alpha": _number(alpha * usual),
        "lora_dropout": dropout,
        "target_modules": [x if x.endswith("c_proj") else x.partition(".")[2] for x in parts],
        "layers_to_transform": lora.layers,
        "layers_pattern": "h",
        "fan_in_fan_out": True,
        "bias": "none",
        "inference_mode": True,
    }
    if not others:
        return config
    ranks = {linear: lora.rank * count for linear, count in others.items()}
    alphas = {linear: _number(alpha * count) for linear, count in others.items()}
    return {**config, "rank_pattern": ranks, "alpha_pattern": alphas}


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _entries(
    lora: Lora, model: ModelSpec, layer: int, linear: str, parts: list[str], dtypes: Mapping[str, str]
) -> Iterator[Entry]:
    for letter, factor, shape in zip(
        "AB", (LORA_A, LORA_B), _shapes(linear, lora.rank * len(parts), model), strict=True
    ):
        pairs = {part: lora.weights.get(f"h.{layer}.{LORA_TARGETS[part]}{factor}") for part in parts}
        name = f"{_PREFIX}h.{layer}.{linear}.lora_{letter}.weight"
        blocks = {part: weight for part, weight in pairs.items() if weight is not None}
        dtype = joint_type(name, {weight.name: dtypes[weight.name] for weight in blocks.values()})
        info = TensorInfo(name, dtype, shape)
        yield info, partial(_fused, blocks, lora.rank, model, ADAPTED[linear], parts, info)


def _fused(
    blocks: Mapping[str, CanonicalWeight],
    rank: int,
    model: ModelSpec,
    every: tuple[str, ...],
    parts: list[str],
    info: TensorInfo,
) -> list[NDArray[Any]]:
    """Return the A of all pairs, one below the other, or their B, block-diagonal; an absent pair is zeros."""
    result = np.zeros(info.shape, info.storage_dtype)
    whole = {**sizes(model), "r": rank}
    for part, weight in blocks.items():
        number = parts.index(part)
        own = slice(number * rank, (number + 1) * rank)
        held = weight.read(weight.whole(whole), weight_axes(weight.name), info.dtype)
        if weight.name.endswith(LORA_A):
            result[own] = held
        else:
            result[every.index(part) * len(held) : (every.index(part) + 1) * len(held), own] = held
    return [result]
