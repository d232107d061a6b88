"""What a checkpoint is, from its names, shapes and bytes."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from gptbridge.errors import printable
from gptbridge.weights.architecture import count_parameters, weight_axes
from gptbridge.weights.canonical.lora import Lora
from gptbridge.weights.conversion.streaming import SLAB_ITEMS
from gptbridge.weights.layouts.boxes import shape_of, slabs
from gptbridge.weights.layouts.stored import StoredAxes
from gptbridge.weights.opening import Opened
from gptbridge_specs import ModelSpec


@dataclass(frozen=True, slots=True)
class LoraFacts:
    """LoRA that is kept apart from the weights."""

    rank: int
    alpha: float | None  # None where no file says it
    layers: int
    parts: list[str]  # of q, k, v, out, fc, proj


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """A checkpoint in numbers and words."""

    path: str
    dialect: str
    variant: str
    format: str
    files: int
    tensor_parallel: int
    pipeline_parallel: int
    tensors: int
    dtypes: dict[str, int]  # how many tensors have each element type
    bytes: int
    parameters: int
    model: ModelSpec
    num_labels: int | None  # classes of a classifier
    configuration: str | None  # the name of its file
    embedding_rows: int  # with padding
    left_out: list[str]  # tensors that are no weights
    assumed: list[str]  # for what no file says
    warnings: list[str]
    lora: LoraFacts | None
    digest: str  # of the canonical weights: equal for equal weights in any dialect and split

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {**asdict(self), "model": self.model.model_dump()}


def checkpoint_facts(opened: Opened) -> CheckpointFacts:
    """Return the facts of a checkpoint; every weight is read for its digest."""
    tensors = [info for file in opened.files for info in file.tensors.values()]
    return CheckpointFacts(
        path=str(opened.path),
        dialect=opened.dialect,
        variant=opened.variant,
        format=opened.files[0].format,
        files=len(opened.files),
        tensor_parallel=opened.stages[0].cutting.degree,
        pipeline_parallel=len({stage.ranks[0] for stage in opened.stages}),
        tensors=len(tensors),
        dtypes=dict(Counter(info.dtype for info in tensors)),
        bytes=sum(info.nbytes for info in tensors),
        parameters=count_parameters(opened.model),
        model=opened.model,
        num_labels=opened.num_labels,
        configuration=printable(opened.config_file) or None,
        embedding_rows=opened.sizes["v"],
        left_out=list(opened.dropped),
        assumed=list(opened.assumed),
        warnings=list(opened.warnings),
        lora=_lora(opened.adapter) if opened.adapter else None,
        digest=f"sha256:{digest(opened)}",
    )


def _lora(adapter: Lora) -> LoraFacts:
    return LoraFacts(adapter.rank, adapter.alpha, len(adapter.layers), adapter.targets)


def digest(opened: Opened) -> str:
    """Return the SHA-256 of the canonical weights: equal for equal weights in any dialect and split.

    It covers a classifier's head, and an adapter that is kept apart.
    """
    total = hashlib.sha256()
    weights, whole = opened.all_weights, opened.whole
    factors = opened.adapter.weights if opened.adapter else {}
    for name in (*opened.names, *sorted(factors)):
        weight = weights[name]
        order, box = weight_axes(name), weight.whole(whole)
        total.update(f"{name} {weight.dtype} {shape_of(box, order)}\n".encode())
        for slab in slabs([box], StoredAxes((order,)), SLAB_ITEMS):
            total.update(weight.read(slab[0], order).data)
    return total.hexdigest()
