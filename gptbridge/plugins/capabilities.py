"""What a backend cannot do, as tables: each limit names a spec field, when it is broken, and why.

A backend's `gptbridge_check` joins the tables here with its own and returns `problems(...)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptbridge.hookspecs import Problem

if TYPE_CHECKING:
    from gptbridge.session import DeviceKind
    from gptbridge_specs import RunSpec


@dataclass(frozen=True, slots=True)
class Limit:
    """One thing a backend cannot do. `broken` sees the spec and the device, None while it is unknown."""

    field: str  # "parallel.tensor"
    broken: Callable[[RunSpec, DeviceKind | None], bool]
    reason: str


ONE_DEVICE = "this backend runs on one device"
LANGUAGE_MODELING = "this backend trains language models only"

SINGLE_DEVICE = (
    Limit("parallel.data", lambda spec, _: spec.parallel.data > 1, ONE_DEVICE),
    Limit("parallel.tensor", lambda spec, _: spec.parallel.tensor > 1, ONE_DEVICE),
    Limit("parallel.pipeline", lambda spec, _: spec.parallel.pipeline > 1, ONE_DEVICE),
    Limit("parallel.sharding", lambda spec, _: spec.parallel.sharding > 1, ONE_DEVICE),
)

LANGUAGE_MODELING_ONLY = (
    Limit("task.name", lambda spec, _: spec.task.name != "language_modeling", LANGUAGE_MODELING),
    Limit("task.lora", lambda spec, _: spec.task.lora is not None, "this backend trains all weights"),
)

# Adapters and classes are trained beside whole layers: of the parallel layouts, data alone.
_CUT = ("tensor", "pipeline", "sharding")
WHOLE_TASKS = tuple(
    Limit(
        field,
        lambda spec, _, asked=asked: asked(spec) and any(getattr(spec.parallel, cut) > 1 for cut in _CUT),  # type: ignore[misc]
        f"is trained on whole models alone: parallel.{', parallel.'.join(_CUT)} must be 1",
    )
    for field, asked in (
        ("task.lora", lambda spec: spec.task.lora is not None),
        ("task.name", lambda spec: spec.task.name == "classification"),
    )
)


def problems(limits: Iterable[Limit], spec: RunSpec, device: DeviceKind | None) -> list[Problem]:
    """Return a problem for each of `limits` that `spec` breaks on `device`."""
    return [Problem(limit.field, limit.reason) for limit in limits if limit.broken(spec, device)]
