"""The equations between a layout, its devices and the model, and the nearest layout that keeps them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from gptbridge_specs.errors import SpecError

if TYPE_CHECKING:
    from gptbridge_specs.model import ModelSpec
    from gptbridge_specs.run import RunSpec

AUTO = "auto"
_OTHERS = ("tensor", "pipeline", "sharding")


def laid_out(content: dict[str, Any], devices: int | None) -> dict[str, Any]:
    """Return the content of a run with parallel.data such that it takes all `devices`, where it may choose.

    It may where it is `auto` or not set. None: as many devices as the layout says, which `auto` makes one.
    SpecError, with the equation, where no layout of that many devices has the other dimensions.
    """
    parallel = content.get("parallel") or {}
    if devices is None or not isinstance(parallel, Mapping):
        return content
    try:
        degrees = {name: int(parallel.get(name, 1)) for name in _OTHERS}
        data = None if parallel.get("data", AUTO) == AUTO else int(parallel["data"])
    except (TypeError, ValueError):
        return content  # what is no number is refused with the other fields
    others = max(1, math.prod(degrees.values()))
    words = " x ".join(f"{name} {degree}" for name, degree in degrees.items())
    left, rest = divmod(devices, others)
    if data is None and rest:
        near = multiples(devices, others)
        raise SpecError([f"parallel.data: {devices} devices / ({words}) is no whole number: {near}"])
    if data is not None and data * others != devices:
        near = f"parallel.data={left}" if left and not rest else f"{data * others} devices"
        product = f"data {data} x {words} = {data * others} devices"
        raise SpecError([f"parallel.data: {product}, not {devices}: {near} would be"])
    return {**content, "parallel": {**parallel, "data": left}}


def cut_to_read(content: dict[str, Any], model: ModelSpec, devices: int | None) -> dict[str, Any]:
    """Return the content of a spec that `model` is read by, such that all `devices` share each pass.

    Of what is not set, parallel.tensor is as much as the model can be cut by, parallel.pipeline the rest. The
    samples of a pass are a micro-batch, and there are as many of these as stages. SpecError, with the
    equation, where no layout of that many devices has what is set, or ranks would do the same twice.
    """
    parallel, training = content.get("parallel") or {}, content["training"]
    if not isinstance(parallel, Mapping) or not isinstance(training, Mapping):
        return content
    for name, only in (("data", 1), ("sharding", 1), ("sharding_stage", 0)):
        if parallel.get(name, only) not in (only, str(only), AUTO):
            words = "a model that is read is cut by parallel.tensor and parallel.pipeline alone"
            raise SpecError([f"parallel.{name}: {words}: {only} would be"])
    try:
        given = {name: int(parallel[name]) for name in ("tensor", "pipeline") if name in parallel}
        rows = int(training.get("global_batch_size", 1))
    except (TypeError, ValueError):
        return content  # what is no number is refused with the other fields
    degrees = given if devices is None else _degrees(given, model, devices)
    if (stages := degrees.get("pipeline", 1)) > 1:
        training = {**training, "global_batch_size": rows * stages, "micro_batch_size": rows}
    return {**content, "training": training, "parallel": {**parallel, **degrees}}


def _degrees(given: Mapping[str, int], model: ModelSpec, devices: int) -> Mapping[str, int]:
    """Return the degrees of tensor and pipeline that take all `devices`; SpecError where none do."""
    if min(given.values(), default=1) < 1:
        return given
    if len(given) == 2:
        if (product := math.prod(given.values())) != devices:
            words = f"tensor {given['tensor']} x pipeline {given['pipeline']} = {product}"
            raise SpecError([f"parallel.pipeline: {words} devices, not {devices}: leave one of them out"])
        return given
    largest = math.gcd(devices, model.num_attention_heads, model.ffn_size)
    ((name, degree),) = given.items() or (("tensor", largest),)
    if devices % degree:
        near = next_to(degree, divisors(devices))
        raise SpecError([f"parallel.{name}: {devices} devices / {name} {degree} is no whole number: {near}"])
    return {name: degree, {"tensor": "pipeline", "pipeline": "tensor"}[name]: devices // degree}


def broken_equations(spec: RunSpec) -> Iterator[str]:
    """Yield a line for each equation that a layout breaks: its field, why, what would fit."""
    parallel, tensor = spec.parallel, spec.parallel.tensor
    cut = {"num_attention_heads": spec.model.num_attention_heads, "ffn_hidden_size": spec.model.ffn_size}
    rows = spec.model.vocab_size
    fits = [n for n in divisors(math.gcd(*cut.values())) if n <= rows]
    near = next_to(tensor, fits)
    for field, size in cut.items():
        if size % tensor:
            yield f"parallel.tensor: model.{field} {size} / tensor {tensor} is no whole number: {near}"
    if rows < tensor:
        yield f"parallel.tensor: model.vocab_size {rows} / tensor {tensor} is less than 1: {near}"
    if parallel.sequence and tensor == 1:
        near = "false" + "".join(f", or parallel.tensor={n}" for n in fits[1:2])
        yield f"parallel.sequence: one tensor rank shares its tokens with nobody: {near}"
    if parallel.sharding_stage and parallel.sharding == 1:
        yield (
            f"parallel.sharding_stage: {parallel.sharding_stage} shares nothing at sharding 1: 0, or "
            "parallel.sharding=2"
        )
    yield from list(_whole_stages(spec)) or _enough_micro_batches(spec)


def _whole_stages(spec: RunSpec) -> Iterator[str]:
    layers, stages, turns = spec.model.num_layers, spec.parallel.pipeline, spec.parallel.virtual_pipeline
    fits = [n for n in divisors(layers) if layers % (n * turns) == 0 and (n > 1 or turns == 1)]
    if turns > 1 and stages == 1:
        near = "1" + "".join(f", or parallel.pipeline={n}" for n in fits[:1])
        yield f"parallel.virtual_pipeline: one stage has nothing to take turns with: {near}"
    elif layers % (stages * turns):
        near = next_to(stages, fits)
        if not fits:
            turning = [n for n in divisors(layers) if layers % (stages * n) == 0]
            alone = f"{next_to(stages, divisors(layers))}, with virtual_pipeline 1"
            near = f"virtual_pipeline {next_to(turns, turning)}" if turning else alone
        divisor = f"(pipeline {stages} x virtual_pipeline {turns})"
        yield f"parallel.pipeline: model.num_layers {layers} / {divisor} is no whole number: {near}"


def _enough_micro_batches(spec: RunSpec) -> Iterator[str]:
    stages, replicas = spec.parallel.pipeline, spec.parallel.data * spec.parallel.sharding
    batch, micro = spec.training.global_batch_size, spec.micro_batch_size
    share = batch // replicas
    rounds = spec.parallel.virtual_pipeline > 1 and spec.parallel.pipeline_schedule == "1f1b"
    if share // micro < stages or (rounds and share // micro % stages):
        fits = [n for n in divisors(share) if share // n >= stages and not (rounds and share // n % stages)]
        near = f"training.micro_batch_size={fits[-1]}" if fits else _more_samples(share, stages, replicas)
        need = "interleaved 1f1b stages need a multiple of as many" if rounds else "stages need as many"
        yield (
            f"parallel.pipeline: {stages} {need} micro-batches; a step has {batch} samples / "
            f"({replicas} replicas x micro_batch_size {micro}) = {share // micro}: {near} would do"
        )


def _more_samples(share: int, stages: int, replicas: int) -> str:
    samples = max(round(share / stages), 1) * stages * replicas
    return f"training.global_batch_size={samples} with training.micro_batch_size=1"


def multiples(size: int, unit: int) -> str:
    """Return the multiples of `unit` next to `size`, in words."""
    return " or ".join(str(n * unit) for n in (size // unit, size // unit + 1) if n) + " would be"


def divisors(number: int) -> list[int]:
    """Return all that divide a number, the smallest first."""
    small = [n for n in range(1, math.isqrt(number) + 1) if number % n == 0]
    return sorted({*small, *(number // n for n in small)})


def next_to(degree: int, fits: list[int]) -> str:
    """Return the fitting numbers next to `degree`."""
    below, above = [n for n in fits if n < degree][-1:], [n for n in fits if n > degree][:1]
    return " or ".join(map(str, [*below, *above])) + " would be" if below or above else "none is"
