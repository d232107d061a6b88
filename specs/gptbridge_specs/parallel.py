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
        near = " or ".join(str(n * others) for n in (left, left + 1) if n)
        raise SpecError([f"parallel.data: {devices} devices / ({words}) is no whole number: {near} would be"])
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
    for name in ("data", "sharding"):
        if parallel.get(name, 1) not in (1, "1", AUTO):
            words = "a model that is read is cut by parallel.tensor and parallel.pipeline alone"
            raise SpecError([f"parallel.{name}: {words}: 1 would be"])
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
        near = _near(degree, _divisors(devices))
        raise SpecError([f"parallel.{name}: {devices} devices / {name} {degree} is no whole number: {near}"])
    return {name: degree, {"tensor": "pipeline", "pipeline": "tensor"}[name]: devices // degree}


def broken_equations(spec: RunSpec) -> Iterator[str]:
    """Yield a line for each equation that a layout breaks: its field, why, what would fit."""
    parallel, layers = spec.parallel, spec.model.num_layers
    tensor, virtual = parallel.tensor, parallel.virtual_pipeline
    cut = {"num_attention_heads": spec.model.num_attention_heads, "ffn_hidden_size": spec.model.ffn_size}
    near = _near(tensor, _divisors(math.gcd(*cut.values())))
    for field, size in cut.items():
        if size % tensor:
            yield f"parallel.tensor: model.{field} {size} / tensor {tensor} is no whole number: {near}"
    if virtual > 1 and parallel.pipeline == 1:
        yield "parallel.virtual_pipeline: one stage has nothing to take turns with: 1, or parallel.pipeline=2"
    elif layers % (parallel.pipeline * virtual):
        near = _near(parallel.pipeline, [n for n in _divisors(layers) if layers % (n * virtual) == 0])
        divisor = f"(pipeline {parallel.pipeline} x virtual_pipeline {virtual})"
        yield f"parallel.pipeline: model.num_layers {layers} / {divisor} is no whole number: {near}"
    yield from _enough_micro_batches(spec)


def _enough_micro_batches(spec: RunSpec) -> Iterator[str]:
    stages, replicas = spec.parallel.pipeline, spec.parallel.data * spec.parallel.sharding
    batch, micro = spec.training.global_batch_size, spec.micro_batch_size
    share = batch // replicas
    if share // micro < stages:
        fits = [n for n in _divisors(share) if share // n >= stages]
        near = f"training.micro_batch_size={fits[-1]}" if fits else f"global_batch_size={stages * replicas}"
        yield (
            f"parallel.pipeline: {stages} stages need as many micro-batches; a step has {batch} samples / "
            f"({replicas} replicas x micro_batch_size {micro}) = {share // micro}: {near} would do"
        )


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


def _near(degree: int, fits: list[int]) -> str:
    """Return the fitting numbers next to `degree`."""
    below, above = [n for n in fits if n < degree][-1:], [n for n in fits if n > degree][:1]
    return " or ".join(map(str, [*below, *above])) + " would be" if below or above else "none is"
