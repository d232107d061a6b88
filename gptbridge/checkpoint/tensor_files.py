"""Canonical tensors as safetensors in the layout of a run's checkpoints: written in a stream, read in slices.

A tensor of a run is a weight, or a moment of one: a moment has its weight's name, then `.exp_avg` or
`.exp_avg_sq`, and lies as the weight does.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BackendBroken, BadInput, RunFailed, printable
from gptbridge.weights.architecture import parameters, sizes
from gptbridge.weights.canonical.arrays import CanonicalArrays
from gptbridge.weights.canonical.assembly import assemble
from gptbridge.weights.canonical.cutting import LetterCutting, Stage
from gptbridge.weights.canonical.weight import CanonicalWeight
from gptbridge.weights.dialects.gptbridge import DIALECT as OWN
from gptbridge.weights.formats import Entry, TensorInfo, WeightFile, open_weights
from gptbridge.weights.formats.finite import all_finite
from gptbridge.weights.formats.safetensors import write_safetensors
from gptbridge.weights.formats.shards import SHARD_BYTES, write_sharded
from gptbridge.weights.layouts.arrays import Read, stored_array
from gptbridge.weights.layouts.matching import best_match, require_whole
from gptbridge.weights.layouts.rules import NativeTensor
from gptbridge_specs import ModelSpec

_LAYOUT = OWN.layouts[0]
_NOT_SAVED = (
    "Earlier checkpoints are untouched; a lower schedule.max_lr, a longer warm-up or "
    "optimizer.clip_grad_norm may help"
)


def write_tensors(
    folder: Path,
    stem: str,
    model: ModelSpec,
    sources: Mapping[str, Read],
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write STEM.safetensors into `folder`, or shards and an index, a tensor at a time, in float32.

    `sources` reads what the names of the file end in: "" for weights, or ".exp_avg" and ".exp_avg_sq".
    RunFailed for a tensor with NaN or infinity, BackendBroken for a slice of another shape than asked for.
    """
    whole = sizes(model)
    names = [parameter.name for parameter in parameters(model)]
    entries: list[Entry] = [
        (
            TensorInfo(native.name + end, "float32", native.axes.shape(whole)),
            partial(_content, native, whole, read, native.name + end),
        )
        for native in _LAYOUT.natives(names, model.num_layers)
        for end, read in sources.items()
    ]
    write_sharded(folder, stem, "safetensors", entries, write_safetensors, shard_bytes)


def _content(
    native: NativeTensor, whole: Mapping[str, int], read: Read, name: str
) -> list[NDArray[np.float32]]:
    try:
        array = stored_array(native, whole, read)
    except ValueError as error:
        raise BackendBroken(str(error)) from error
    if not all_finite(array, "float32"):
        raise RunFailed(f"{name} holds NaN or infinity: there is nothing to go on from", hint=_NOT_SAVED)
    return [array]


def open_tensors(
    folder: Path, stem: str, model: ModelSpec, stack: ExitStack, *ends: str
) -> dict[str, CanonicalArrays]:
    """Open STEM.safetensors or its shards in `folder`; return the tensors whose names have each end.

    `stack` closes the files. BadInput unless they hold all of `model`'s tensors for each end, each of its
    shape, and nothing else.
    """
    index = folder / f"{stem}.safetensors.index.json"
    files = stack.enter_context(open_weights(index if index.exists() else folder / f"{stem}.safetensors"))
    for name in files.tensors:
        if not name.endswith(ends):
            raise BadInput(f"{printable(name)} is left over", where=files.path, allowed=f"names in {ends}")
    return {end: CanonicalArrays(_weights(files, model, end), sizes(model)) for end in ends}


def _weights(files: WeightFile, model: ModelSpec, end: str) -> dict[str, CanonicalWeight]:
    names = tuple(name for name in files.tensors if name.endswith(end))
    layout = replace(_LAYOUT, plain_name=lambda name: name.removesuffix(end))
    match = require_whole(best_match([layout], [names]), files.path)
    found = assemble(match, [Stage((files,), names, LetterCutting(1, files.path))], sizes(model))
    wanted = [parameter.name for parameter in parameters(model)]
    for name in wanted:
        if name not in found:
            raise BadInput(f"no tensor {name}{end}", where=files.path)
    for name in found:
        if name not in wanted:
            raise BadInput(f"{printable(name)}{end} is left over: no weight of the model", where=files.path)
    return {name: found[name] for name in wanted}
