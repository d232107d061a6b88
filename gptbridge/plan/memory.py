"""The memory that a run takes on each of its devices, estimated from the architecture's table."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

from gptbridge.hookspecs import Kept, MemoryUse
from gptbridge.weights.architecture import parameters, sizes
from gptbridge.weights.layouts.axes import axes
from gptbridge_specs import RunSpec
from gptbridge_specs.run import ParallelSpec, TrainingSpec

RECOMPUTE: tuple[str, ...] = get_args(TrainingSpec.model_fields["recompute"].annotation)
_FLOAT32 = 4
_MOMENTS = {"adamw": 2, "sgd": 0}
# A first weight is drawn in float64, cast and written: copies of the largest one while weights are loaded.
_LOADING = 3.7


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes on one device. Gradients grow while activations go, so that the peak is less than the sum."""

    weights: int  # the fp32 masters, and a copy in the compute type where that is another
    gradients: int
    moments: int
    activations: int  # kept for the backward pass, with what one layer and the loss work with
    process: int  # the framework itself
    peak: int  # of the steps
    saving: int  # with the copy of what is saved, after a step: where there is no room, there is no copy


@dataclass(frozen=True, slots=True)
class _Sizes:
    """What one device holds of a model, in bytes, and the shapes of one token."""

    weights: int
    trained: int
    matrix: int  # of the head
    layers: int
    letters: Mapping[str, int]


def estimate_training(spec: RunSpec, use: MemoryUse) -> Estimate:
    """Return what training takes at its peak, on the device of a rank that has the embeddings."""
    held = _sizes(spec)
    width = _FLOAT32 if spec.precision.compute == "fp32" else 2
    sharded = [spec.parallel.sharding if spec.parallel.sharding_stage >= stage else 1 for stage in (1, 2, 3)]
    cast = held.weights * width // _FLOAT32 if width != _FLOAT32 else 0
    weights = held.weights // sharded[2] + cast
    gradients = held.trained // sharded[1]
    moments = _MOMENTS[spec.optimizer.name] * held.trained // sharded[0]
    parts = _layer(spec, use, held, width)
    whole = sum(parts.values())
    kept = sum(parts[part] for part in _KEPT[spec.training.recompute])
    accumulated = spec.training.global_batch_size // (spec.parallel.data * spec.parallel.sharding)
    micro_batches = accumulated // spec.micro_batch_size
    # One layer is recomputed and differentiated at a time, beside what all of them keep.
    working = (whole - kept) + int(use.working * whole)
    logits = min(use.logits, spec.micro_batch_size * spec.training.seq_length * held.letters["v"])
    loss = int(use.head * held.matrix) + 2 * _FLOAT32 * logits
    activations = held.layers * kept * _in_flight(spec.parallel, micro_batches) + working + loss
    before = gradients if micro_batches > 1 else 0  # those of the micro-batches before
    waste = use.waste if spec.training.recompute == "none" else 1.0
    step = int(waste * max(activations + before, kept + working + gradients))
    process = use.process + use.per_layer * held.layers
    if spec.training.recompute != "none":
        process += use.recomputing
    peak = process + weights + moments + max(step, int(_LOADING * held.matrix))
    saving = process + weights + gradients + 2 * moments + held.trained // sharded[2]
    return Estimate(weights, gradients, moments, activations, process, peak, saving)


def _in_flight(parallel: ParallelSpec, micro_batches: int) -> int:
    """Return of how many micro-batches a stage keeps activations at once: the first of them the most."""
    return micro_batches if parallel.pipeline_schedule == "gpipe" else min(parallel.pipeline, micro_batches)


def peaks_by_recompute(spec: RunSpec, use: MemoryUse) -> dict[str, int]:
    """Return the peak in bytes under each level of training.recompute."""
    return {level: estimate_training(with_training(spec, recompute=level), use).peak for level in RECOMPUTE}


def opened_bytes(spec: RunSpec, use: MemoryUse) -> int:
    """Return the least that a model takes that is opened to be read: its weights, and the framework."""
    width = _FLOAT32 if spec.precision.compute == "fp32" else 2
    return use.process + _sizes(spec).weights * width // _FLOAT32


def with_training(spec: RunSpec, **changed: object) -> RunSpec:
    """Return `spec` with other fields of its section `training`."""
    return spec.model_copy(update={"training": spec.training.model_copy(update=changed)})


# Which parts of a layer live until its backward pass, by level of recompute.
_KEPT = {
    "none": ("input", "block", "attention", "core"),
    "core_attn": ("input", "block", "attention"),
    "full_attn": ("input", "block"),
    "full": ("input",),
}


def _layer(spec: RunSpec, use: MemoryUse, held: _Sizes, width: int) -> dict[str, int]:
    """Return the bytes of each part of a layer for one micro-batch."""
    model = spec.model
    rows = spec.micro_batch_size * spec.training.seq_length

    def size(kept: Kept, wanted: bool = True) -> int:
        shapes = {name: math.prod(axes(name).shape(held.letters)) for name in kept}
        # the stream and its norms stay fp32, whatever the products are computed in
        return int(
            wanted * rows * sum(n * shapes[s] * (_FLOAT32 if s == "i" else width) for s, n in kept.items())
        )

    return {
        "input": size({"i": 1}),
        "core": size(use.core) + size(use.core_dropped, model.attention_probs_dropout_prob > 0),
        "attention": size(use.attention),
        "block": size(use.block) + size(use.block_dropped, model.hidden_dropout_prob > 0),
    }


def _sizes(spec: RunSpec) -> _Sizes:
    parallel = spec.parallel
    letters = sizes(spec.model, spec.task)
    letters |= {letter: -(-letters[letter] // parallel.tensor) for letter in "mfv"}
    layers = -(-spec.model.num_layers // parallel.pipeline)
    one_layer = spec.model.model_copy(update={"num_layers": 1})  # thousands are alike
    bytes_of = {
        p: (1 if p.layer is None else layers) * _FLOAT32 * math.prod(p.axes.shape(letters))
        for p in parameters(one_layer, spec.task)
    }
    return _Sizes(
        weights=sum(bytes_of.values()),
        trained=sum(count for p, count in bytes_of.items() if p.trainable),
        matrix=_FLOAT32 * letters["v"] * letters["i"],
        layers=layers,
        letters={**letters, "t": spec.training.seq_length},
    )
