"""LoRA adapters in the form of Hugging Face's PEFT: adapter_config.json and adapter_model.safetensors.

GPT-2 has one matrix for q, k and v, so PEFT has one pair of factors for it: A (R, in), B (3H, R). Pairs
of q, k and v, of rank r each, become the blocks of one of rank R = r x pairs: A stacked, B
block-diagonal, alpha x pairs. Which blocks stand for which of q, k, v is noted in the file's metadata,
which PEFT ignores, so that the way back finds the same pairs. A pair of PEFT's own is read as three
that share A.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BadInput, printable
from gptbridge.files import read_json, write_json
from gptbridge.weights.architecture import LORA_A, LORA_B, sizes, weight_axes
from gptbridge.weights.canonical.casting import FLOATS, joint_type
from gptbridge.weights.canonical.lora import QKV, Lora
from gptbridge.weights.canonical.weight import CanonicalWeight
from gptbridge.weights.configs.numbers import finite_number
from gptbridge.weights.formats import Entry, TensorInfo, WeightFile, open_weights
from gptbridge.weights.formats.safetensors import write_safetensors
from gptbridge.weights.layouts.axes import Axes
from gptbridge.weights.layouts.boxes import Piece
from gptbridge_specs import ModelSpec

FOLDER = "adapter"
CONFIG_FILE = "adapter_config.json"
_WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PREFIX = "base_model.model.transformer."
_NAME = re.compile(
    r"base_model\.model\.(?:transformer\.)?h\.(0|[1-9][0-9]{0,5})\.attn\.c_attn\.lora_([AB])\.weight"
)
_METADATA_KEY = "gptbridge.parts"
# Kinds of LoRA whose arithmetic is another one: only these values, or none, are read.
_FIXED: Mapping[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "lora_bias": (False,),
    "bias": ("none",),
    "rank_pattern": ({},),
    "alpha_pattern": ({},),
    "modules_to_save": ([],),
    "layer_replication": ([],),
    **{f"{kind}_config": ({},) for kind in ("arrow", "kasa", "monteclora", "velora")},
}


def read_adapter(root: Path, model: ModelSpec, stack: ExitStack, *, alpha: float | None) -> Lora | None:
    """Return the adapter in `root` or `root`/adapter, or None when there is none; `stack` closes it."""
    for folder in (root, root / FOLDER):
        if (folder / CONFIG_FILE).exists():
            return _read(folder, model, stack, alpha)
    return None


def _read(folder: Path, model: ModelSpec, stack: ExitStack, alpha: float | None) -> Lora:
    config_path = folder / CONFIG_FILE
    config = read_json(config_path)
    kinds = {key: (False,) for key in config if key.startswith("use_")}  # use_dora, use_rslora, ...
    for key, allowed in {**_FIXED, **kinds}.items():
        if config.get(key) is not None and config[key] not in allowed:
            problem = f"{printable(key)} is {printable(config[key], 60)}"
            raise BadInput(problem, where=config_path, allowed=str(allowed[0]))
    stated = finite_number(config.get("lora_alpha"), "lora_alpha", config_path)
    path = next((folder / name for name in _WEIGHT_FILES if (folder / name).exists()), None)
    if path is None:
        raise BadInput(f"holds no {' or '.join(_WEIGHT_FILES)}", where=folder)
    file = stack.enter_context(open_weights(path))
    total = _check_shapes(file, model)
    parts = _block_parts(file, total, model)
    blocks = len(parts) if parts else 1
    weights: dict[str, CanonicalWeight] = {}
    for name in file.tensors:
        if match := _NAME.fullmatch(name):
            factor = LORA_A if match.group(2) == "A" else LORA_B
            for part in parts or range(len(QKV)):
                canonical = f"h.{match.group(1)}.attn.{QKV[part]}{factor}"
                block = parts.index(part) if parts else 0
                weights[canonical] = _weight(canonical, file, name, part, block, total // blocks, model)
    return Lora(total // blocks, alpha if alpha is not None else stated / blocks, weights)


def _check_shapes(file: WeightFile, model: ModelSpec) -> int:
    """Return the rank; BadInput for a tensor that is no LoRA factor of this model's c_attn."""
    pairs: dict[int, set[str]] = {}
    rank = 0
    for name, info in file.tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or int(match.group(1)) >= model.num_layers:
            raise BadInput(
                f"{printable(name)} is left over", where=file.path, allowed="LoRA of the layers' c_attn"
            )
        rank = rank or min(info.shape, default=0)
        shapes = {"A": (rank, model.hidden_size), "B": (3 * model.hidden_size, rank)}
        if rank < 1 or info.shape != shapes[match.group(2)] or info.dtype not in FLOATS:
            expected = shapes[match.group(2)]
            raise BadInput(f"{printable(name)} is {info.dtype} {info.shape}, not {expected}", where=file.path)
        pairs.setdefault(int(match.group(1)), set()).add(match.group(2))
    for layer, factors in pairs.items():
        if len(factors) < 2:
            raise BadInput(f"layer {layer} has half a pair of LoRA factors", where=file.path)
    if not pairs:
        raise BadInput("holds no LoRA factors", where=file.path)
    return rank


def _block_parts(file: WeightFile, rank: int, model: ModelSpec) -> tuple[int, ...]:
    """Return which of q, k, v the blocks are of, or () for a pair of PEFT's own."""
    noted = file.metadata.get(_METADATA_KEY, "")
    parts = tuple(QKV.find(letter) for letter in noted)
    if not parts or -1 in parts or len(set(parts)) < len(parts) or rank % len(parts):
        return ()
    h, share = model.hidden_size, rank // len(parts)
    for name in file.tensors:
        if name.endswith("lora_B.weight"):
            blocks = np.array(file.read(name))
            for number, part in enumerate(parts):
                blocks[part * h : (part + 1) * h, number * share : (number + 1) * share] = 0
            if blocks.any():
                return ()  # someone went on training it
    return parts


def _weight(
    canonical: str, file: WeightFile, name: str, part: int, block: int, rank: int, model: ModelSpec
) -> CanonicalWeight:
    """Return a factor of q, k or v: its block of PEFT's, or of A the whole."""
    order = weight_axes(canonical)
    whole = {**sizes(model), "r": rank}
    columns = slice(block * rank, (block + 1) * rank)
    rows = slice(part * model.hidden_size, (part + 1) * model.hidden_size)
    where = (columns, slice(None)) if canonical.endswith(LORA_A) else (rows, columns)
    box = {letter: (0, whole[letter]) for letter in order.letters}
    piece = Piece(box, order, order.letters[0], partial(_read_block, file, name, where, whole, order))
    return CanonicalWeight(canonical, file.tensors[name].dtype, (piece,))


def _read_block(
    file: WeightFile,
    name: str,
    where: tuple[slice, slice],
    whole: Mapping[str, int],
    order: Axes,
    start: int,
    stop: int,
) -> NDArray[Any]:
    """Return entries [start, stop) of the first letter of the block that is q's, k's or v's."""
    return order.spread(file.read(name)[where], whole)[start:stop]


def write_adapter(lora: Lora, model: ModelSpec, dtypes: Mapping[str, str], folder: Path) -> list[str]:
    """Write `folder`/adapter for the base model in `folder`; return the names of its files."""
    parts = lora.all_parts
    target = folder / FOLDER
    target.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": lora.rank * len(parts),
        "lora_alpha": _number(lora.require_alpha() * len(parts)),
        "lora_dropout": 0.0,
        "target_modules": ["c_attn"],
        "layers_to_transform": lora.layers,
        "layers_pattern": "h",
        "fan_in_fan_out": True,
        "bias": "none",
        "inference_mode": True,
    }
    write_json(target / CONFIG_FILE, config)
    metadata = {"format": "pt", _METADATA_KEY: "".join(QKV[part] for part in parts)}
    write_safetensors(target / _WEIGHT_FILES[0], list(_entries(lora, model, parts, dtypes)), metadata)
    return [f"{FOLDER}/{CONFIG_FILE}", f"{FOLDER}/{_WEIGHT_FILES[0]}"]


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _entries(
    lora: Lora, model: ModelSpec, parts: tuple[int, ...], dtypes: Mapping[str, str]
) -> Iterator[Entry]:
    rank, hidden = lora.rank * len(parts), model.hidden_size
    forms: tuple[tuple[str, str, tuple[int, int]], ...] = (
        ("A", LORA_A, (rank, hidden)),
        ("B", LORA_B, (3 * hidden, rank)),
    )
    for layer in lora.layers:
        for letter, factor, shape in forms:
            pairs = [lora.weights.get(f"h.{layer}.attn.{QKV[part]}{factor}") for part in parts]
            name = f"{_PREFIX}h.{layer}.attn.c_attn.lora_{letter}.weight"
            blocks = {part: weight for part, weight in zip(parts, pairs, strict=True) if weight is not None}
            dtype = joint_type(name, {weight.name: dtypes[weight.name] for weight in blocks.values()})
            info = TensorInfo(name, dtype, shape)
            yield info, partial(_fused, blocks, lora.rank, model, parts, info)


def _fused(
    blocks: Mapping[int, CanonicalWeight],
    rank: int,
    model: ModelSpec,
    parts: tuple[int, ...],
    info: TensorInfo,
) -> list[NDArray[Any]]:
    """Return the A of all pairs, one below the other, or their B, block-diagonal; an absent pair is zeros."""
    result = np.zeros(info.shape, info.storage_dtype)
    whole = {**sizes(model), "r": rank}
    for part, weight in blocks.items():
        number = parts.index(part)
        own = slice(number * rank, (number + 1) * rank)
        rows = slice(part * model.hidden_size, (part + 1) * model.hidden_size)
        where = (own, slice(None)) if weight.name.endswith(LORA_A) else (rows, own)
        result[where] = weight.read(weight.whole(whole), weight_axes(weight.name), info.dtype)
    return [result]
