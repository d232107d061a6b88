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
from gptbridge.weights.architecture import LORA_TARGETS, parameters, sizes
from gptbridge.weights.canonical.arrays import CanonicalArrays
from gptbridge.weights.canonical.assembly import assemble
from gptbridge.weights.canonical.cutting import LetterCutting, Stage
from gptbridge.weights.canonical.lora import FACTORS
from gptbridge.weights.canonical.weight import CanonicalWeight
from gptbridge.weights.dialects.gptbridge import DIALECT as OWN
from gptbridge.weights.formats import Entry, TensorInfo, WeightFile, open_weights
from gptbridge.weights.formats.finite import all_finite
from gptbridge.weights.formats.safetensors import write_safetensors
from gptbridge.weights.formats.shards import SHARD_BYTES, write_sharded
from gptbridge.weights.layouts.arrays import Read, stored_array
from gptbridge.weights.layouts.matching import best_match, require_whole
from gptbridge.weights.layouts.rules import NativeTensor, rows, rules
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import TaskSpec

# Factors of adapters, of which this room keeps the moments, have their canonical names.
_FACTORS = {f"{layer}{factor}": f"{layer}{factor}" for layer in LORA_TARGETS.values() for factor in FACTORS}
_LAYOUT = replace(
    OWN.layouts[0],
    rules=(*OWN.layouts[0].rules, *rules(top={}, block=rows(_FACTORS), blocks="h.{}.")),
)
_NOT_SAVED = (
    "Earlier checkpoints are untouched; a lower schedule.max_lr, a longer warm-up or "
    "optimizer.clip_grad_norm may help"
)


def write_tensors(
    folder: Path,
    stem: str,
    model: ModelSpec,
    sources: Mapping[str, Read],
    task: TaskSpec | None = None,
    *,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write STEM.safetensors into `folder`, or shards and an index, a tensor at a time, in float32.

    What is written of `model` is what `task` trains.
    `sources` reads what the names of the file end in: "" for weights, or ".exp_avg" and ".exp_avg_sq".
    RunFailed for a tensor with NaN or infinity, BackendBroken for a slice of another shape than asked for.
    """
    whole, names = sizes(model, task), _trained(model, task)
    entries: list[Entry] = [
        (
            TensorInfo(native.name + end, "float32", native.axes.shape(whole)),
            partial(_content, native, whole, read, native.name + end),
        )
        for native in _LAYOUT.natives(names, model.num_layers)
        for end, read in sources.items()
    ]
    write_sharded(folder, stem, "safetensors", entries, write_safetensors, shard_bytes)


def _trained(model: ModelSpec, task: TaskSpec | None) -> list[str]:
    return [parameter.name for parameter in parameters(model, task) if parameter.trainable]


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
    folder: Path, stem: str, model: ModelSpec, stack: ExitStack, *ends: str, task: TaskSpec | None = None
) -> dict[str, CanonicalArrays]:
    """Open STEM.safetensors or its shards in `folder`; return the tensors whose names have each end.

    `stack` closes the files. BadInput unless they hold all tensors of `model` that `task` trains for each
    end, each of its shape, and nothing else.
    """
    index = folder / f"{stem}.safetensors.index.json"
    files = stack.enter_context(open_weights(index if index.exists() else folder / f"{stem}.safetensors"))
    for name in files.tensors:
        if not name.endswith(ends):
            raise BadInput(f"{printable(name)} is left over", where=files.path, allowed=f"names in {ends}")
    whole = sizes(model, task)
    return {end: CanonicalArrays(_weights(files, model, task, end, whole), whole) for end in ends}


def _weights(
    files: WeightFile, model: ModelSpec, task: TaskSpec | None, end: str, whole: Mapping[str, int]
) -> dict[str, CanonicalWeight]:
    names = tuple(name for name in files.tensors if name.endswith(end))
    layout = replace(_LAYOUT, plain_name=lambda name: name.removesuffix(end))
    match = best_match([layout], [names])
    if task is None or task.lora is None:
        require_whole(match, files.path)
    found = assemble(match, [Stage((files,), names, LetterCutting(1, files.path))], whole)
    wanted = _trained(model, task)
    for name in wanted:
        if name not in found:
            raise BadInput(f"no tensor {name}{end}", where=files.path)
    for name in found:
        if name not in wanted:
            raise BadInput(f"{printable(name)}{end} is left over: no weight of the model", where=files.path)
    return {name: found[name] for name in wanted}
