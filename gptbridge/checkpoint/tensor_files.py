"""Canonical tensors as safetensors in Hugging Face's layout: written in a stream, read in slices.

A tensor of a run is a weight, or a moment of one: a moment has its weight's name, then `.exp_avg` or
`.exp_avg_sq`, and lies as the weight does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BackendBroken, BadInput, RunFailed, printable
from gptbridge.weights.architecture import parameters, sizes, weight_axes
from gptbridge.weights.conversion.assembly import assemble
from gptbridge.weights.conversion.canonical_weight import CanonicalWeight
from gptbridge.weights.conversion.cutting import LetterCutting, Stage
from gptbridge.weights.dialects.gptbridge import DIALECT as OWN
from gptbridge.weights.dialects.huggingface import DIALECT as HUGGING_FACE
from gptbridge.weights.formats import Entry, TensorInfo, WeightFile, open_weights
from gptbridge.weights.formats.finite import all_finite
from gptbridge.weights.formats.safetensors import write_safetensors
from gptbridge.weights.formats.shards import SHARD_BYTES, write_sharded
from gptbridge.weights.layouts.arrays import Read, stored_array
from gptbridge.weights.layouts.boxes import Box
from gptbridge.weights.layouts.matching import best_match, require_whole
from gptbridge.weights.layouts.rules import Layout, NativeTensor
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


class TensorFiles(Mapping[str, NDArray[np.float32]]):
    """The canonical tensors of a model in files, whole or in slices, in float32."""

    def __init__(self, model: ModelSpec, weights: Mapping[str, CanonicalWeight]) -> None:
        self._sizes = sizes(model)
        self._weights = weights

    def read(self, name: str, box: Box) -> NDArray[np.float32]:
        """Return a slice of a tensor in its canonical shape. BadInput for what float32 cannot hold."""
        return self._weights[name].read(box, weight_axes(name), "float32")

    def __getitem__(self, name: str) -> NDArray[np.float32]:
        return self.read(name, self._weights[name].whole(self._sizes))

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def open_tensors(folder: Path, stem: str, model: ModelSpec, *ends: str) -> dict[str, TensorFiles]:
    """Open STEM.safetensors or its shards in `folder`; return the tensors whose names have each end.

    BadInput unless the files hold all of `model`'s tensors for each end, each of its shape, and nothing
    else but masks that old releases saved and the head of a model whose head is tied.
    """
    index = folder / f"{stem}.safetensors.index.json"
    files = open_weights(index if index.exists() else folder / f"{stem}.safetensors")
    if files.format != "safetensors":
        raise BadInput(f"this is {files.format}", where=files.path, allowed="safetensors")
    for name in files.tensors:
        if not name.endswith(ends):
            raise BadInput(f"{printable(name)} is left over", where=files.path, allowed=f"names in {ends}")
    return {end: TensorFiles(model, _weights(files, model, end)) for end in ends}


def _weights(files: WeightFile, model: ModelSpec, end: str) -> dict[str, CanonicalWeight]:
    names = tuple(name for name in files.tensors if name.endswith(end))
    match = require_whole(
        best_match([_ending(layout, end) for layout in HUGGING_FACE.layouts], [names]), files.path
    )
    wanted = [parameter.name for parameter in parameters(model)]
    held = {native.canonicals[0]: native for native in match.natives.values()}
    if model.tie_word_embeddings:
        held.pop("lm_head.weight", None)
    _require(wanted, held, files, sizes(model), end)
    natives = {key: native for key, native in match.natives.items() if native in held.values()}
    stage = Stage((files,), names, LetterCutting(1, files.path))
    found = assemble(replace(match, natives=natives), [stage], sizes(model))
    return {name: found[name] for name in wanted}


def _require(
    wanted: Sequence[str],
    held: Mapping[str, NativeTensor],
    files: WeightFile,
    whole: Mapping[str, int],
    end: str,
) -> None:
    """Refuse tensors, by the first weight in each, that are not just those of the model."""
    known = {name for native in held.values() for name in native.canonicals}
    for name in wanted:
        if name not in known:
            raise BadInput(f"no tensor {name}{end}", where=files.path)
        native = held.get(name)
        if native is not None:
            found, shape = files.tensors[native.name].shape, native.axes.shape(whole)
            if found != shape:
                problem = f"{printable(native.name)} has shape {found}, config.json says {shape}"
                raise BadInput(problem, where=files.path)
    for name, native in held.items():
        if name not in wanted:
            raise BadInput(f"{printable(native.name)} is left over: no weight of the model", where=files.path)


def _ending(layout: Layout, end: str) -> Layout:
    """Return the layout of moments, whose names have that end after those of their weights."""
    return replace(layout, plain_name=lambda name: layout.plain_name(name).removesuffix(end))
