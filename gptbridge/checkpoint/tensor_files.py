"""Canonical tensors as safetensors in the layout of a run's checkpoints: written and read in slices.

A tensor of a run is a weight, or a moment of one: a moment has its weight's name, then `.exp_avg` or
`.exp_avg_sq`, and lies as the weight does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BackendBroken, BadInput, RunFailed, printable
from gptbridge.session import Shard
from gptbridge.weights.architecture import LORA_TARGETS, parameters, sizes
from gptbridge.weights.canonical.arrays import CanonicalArrays
from gptbridge.weights.canonical.assembly import assemble
from gptbridge.weights.canonical.cutting import LetterCutting, Stage
from gptbridge.weights.canonical.lora import FACTORS
from gptbridge.weights.canonical.weight import CanonicalWeight
from gptbridge.weights.dialects.gptbridge import DIALECT as OWN
from gptbridge.weights.formats import TensorInfo, WeightFile, open_weights
from gptbridge.weights.formats.finite import all_finite
from gptbridge.weights.formats.safetensors import header_of
from gptbridge.weights.formats.shards import SHARD_BYTES, shard_files, write_index
from gptbridge.weights.layouts.axes import Axes
from gptbridge.weights.layouts.boxes import sizes_of
from gptbridge.weights.layouts.matching import best_match, require_whole
from gptbridge.weights.layouts.rules import NativeTensor, rows, rules
from gptbridge.weights.layouts.runs import runs
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import TaskSpec

# Factors of adapters, of which this room keeps the moments, have their canonical names.
_FACTORS = {f"{layer}{factor}": f"{layer}{factor}" for layer in LORA_TARGETS.values() for factor in FACTORS}
_LAYOUT = replace(
    OWN.layouts[0],
    rules=(*OWN.layouts[0].rules, *rules(top={}, block=rows(_FACTORS), blocks="h.{}.")),
)
_WRITE_BYTES = 8 << 20  # at once: others wait for as long
_NOT_SAVED = (
    "Earlier checkpoints are untouched; a lower schedule.max_lr, a longer warm-up or "
    "optimizer.clip_grad_norm may help"
)


def trained_names(model: ModelSpec, task: TaskSpec | None = None) -> list[str]:
    """Return the canonical names of what `task` trains: what a run keeps in its checkpoints."""
    return [parameter.name for parameter in parameters(model, task) if parameter.trainable]


class TensorFiles:
    """STEM.safetensors, or shards of it and an index: what `task` trains of a model, once for each of `ends`.

    A tensor is named as its weight and one of `ends`: "" for weights, or ".exp_avg" and ".exp_avg_sq". What
    the files are follows from the model alone, so that any number of ranks write the same bytes: one of them
    creates the files, all write what they own.
    """

    def __init__(
        self,
        stem: str,
        model: ModelSpec,
        ends: Sequence[str] = ("",),
        *,
        task: TaskSpec | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self._stem, self._sizes = stem, sizes(model, task)
        self._natives = list(_LAYOUT.natives(trained_names(model, task), model.num_layers))
        infos = [
            TensorInfo(native.name + end, "float32", native.axes.shape(self._sizes))
            for native in self._natives
            for end in ends
        ]
        self._files = shard_files(stem, "safetensors", infos, shard_bytes)

    def create(self, folder: Path) -> None:
        """Make every file in its full size, with nothing but its header, and the index."""
        for name, infos in self._files.items():
            header, _ = header_of(infos)
            with (folder / name).open("xb") as file:
                file.write(header)
                file.truncate(len(header) + sum(info.nbytes for info in infos))
        write_index(folder, self._stem, "safetensors", self._files)

    def write(self, folder: Path, shards: Mapping[str, Sequence[Shard]]) -> None:
        """Write `shards`, by the end of their tensors' names, in float32, one after the other, to the disk.

        RunFailed for a tensor with NaN or infinity, BackendBroken for a shard of another shape than its box.
        """
        weights = {name: (n, part) for n in self._natives for part, name in enumerate(n.canonicals)}
        wanted: dict[str, list[tuple[Shard, int, NativeTensor]]] = {}
        for end, held in shards.items():
            for shard in held:
                native, part = weights[shard.name]
                if 0 not in shard.shape:  # of fewer rows than ranks
                    wanted.setdefault(native.name + end, []).append((shard, part, native))
        for file, infos in self._files.items():
            _, offsets = header_of(infos)
            if offsets.keys() & wanted.keys():
                with (folder / file).open("r+b", buffering=0) as output:
                    for name, offset in offsets.items():
                        for shard, part, native in wanted.get(name, ()):
                            content = _content(shard, native.axes.parts[part], name)
                            starts, run = runs(native.axes, part, shard.box, self._sizes)
                            for start, row in zip(starts.tolist(), content.reshape(-1, run), strict=True):
                                _write_at(output.fileno(), offset + row.itemsize * start, row)
                    os.fsync(output.fileno())


def _content(shard: Shard, order: Axes, name: str) -> NDArray[np.float32]:
    """Return what a shard holds in the order of the stored letters `order`."""
    array = shard.read()
    if array.shape != shard.shape:
        raise BackendBroken(f"{shard.name} has shape {array.shape}, not {shard.shape}")
    if not all_finite(array, "float32"):
        raise RunFailed(f"{name} holds NaN or infinity: there is nothing to go on from", hint=_NOT_SAVED)
    spread = shard.axes.spread(array, sizes_of(shard.box)).transpose(shard.axes.order_of(order))
    return np.ascontiguousarray(spread)


def _write_at(fd: int, offset: int, row: NDArray[np.float32]) -> None:
    rest = row.data.cast("B")
    while rest:
        written = os.pwrite(fd, rest[:_WRITE_BYTES], offset)
        rest, offset = rest[written:], offset + written


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
    wanted = trained_names(model, task)
    for name in wanted:
        if name not in found:
            raise BadInput(f"no tensor {name}{end}", where=files.path)
    for name in found:
        if name not in wanted:
            raise BadInput(f"{printable(name)}{end} is left over: no weight of the model", where=files.path)
    return {name: found[name] for name in wanted}
