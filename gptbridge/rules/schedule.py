"""The learning rate of each step: pure functions of the step, the same on every backend.

Step 1 is the first update. The shapes are those of the published recipes that the presets
reproduce: cosine as PaddleNLP and PaddleFleetX have it, linear as PaddleFleetX's finetuning,
polynomial as MindFormers, noam as ModelScope. Linear and polynomial count the updates done before:
their first update has t = 0, so that a warm-up begins with a rate of 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from importlib import metadata

from gptbridge.errors import RunFailed, UsageError
from gptbridge_specs.run import ScheduleSpec

# The rate of step 1, 2, ... of a run of so many steps: the same for the same arguments, whatever came before.
Schedule = Callable[[ScheduleSpec, int, int], float]
_GROUP = "gptbridge.schedules"


def learning_rate(schedule: ScheduleSpec, max_steps: int, step: int) -> float:
    """Return the learning rate of the update at `step` (1 is the first) of a run of `max_steps`.

    UsageError for a plugin that is not there; RunFailed where it fails or returns no rate.
    """
    if schedule.plugin is not None:
        return _of_plugin(schedule.plugin, schedule, max_steps, step)
    decay_steps = schedule.decay_steps or max_steps
    return _SHAPES[schedule.name](schedule, decay_steps, step - (schedule.name in _FROM_ZERO))


def _of_plugin(name: str, schedule: ScheduleSpec, max_steps: int, step: int) -> float:
    try:
        rate = float(_plugin(name)(schedule, max_steps, step))
        if not 0 <= rate < math.inf:
            raise ValueError(f"{rate} is no learning rate")
    except UsageError:
        raise
    except Exception as error:  # whatever a stranger's function raises
        problem = f"failed at step {step}: {type(error).__name__}: {error}"
        raise RunFailed(problem, where=f"schedule.plugin={name}") from error
    return rate


@cache
def _plugin(name: str) -> Schedule:
    """Return the function of an entry point."""
    entries = metadata.entry_points(group=_GROUP)
    found = [entry for entry in entries if entry.name == name]
    if len(found) != 1:
        names = sorted({entry.name for entry in entries})
        problem = f"{len(found)} packages have a schedule {name!r}"
        raise UsageError(
            problem, where="schedule.plugin", allowed=", ".join(names) or f"an entry point in {_GROUP}"
        )
    schedule: Schedule = found[0].load()
    return schedule


def warmup_steps(schedule: ScheduleSpec, decay_steps: int) -> float:
    """Return the length of the warm-up in steps; a share of decay_steps is not rounded."""
    if schedule.warmup_steps is not None:
        return schedule.warmup_steps
    return schedule.warmup_rate * decay_steps


def _cosine(schedule: ScheduleSpec, decay_steps: int, step: int) -> float:
    warmup = warmup_steps(schedule, decay_steps)
    if step <= warmup:
        return schedule.max_lr * step / warmup
    if step > decay_steps:
        return schedule.min_lr
    height = 0.5 * (math.cos(math.pi * (step - warmup) / (decay_steps - warmup)) + 1.0)
    return schedule.min_lr + height * (schedule.max_lr - schedule.min_lr)


def _linear(schedule: ScheduleSpec, decay_steps: int, step: int) -> float:
    # The line runs from max_lr at step 0 to 0 at decay_steps: it is not stretched to start after the warm-up.
    warmup = math.floor(warmup_steps(schedule, decay_steps))
    if step < warmup:
        return schedule.max_lr * step / warmup
    return max(schedule.min_lr, schedule.max_lr * (1.0 - step / decay_steps))


def _polynomial(schedule: ScheduleSpec, decay_steps: int, step: int) -> float:
    warmup = warmup_steps(schedule, decay_steps)
    if step < warmup:
        return schedule.max_lr * step / warmup
    if step >= decay_steps:
        return schedule.min_lr
    left = 1.0 - (step - warmup) / (decay_steps - warmup)
    return schedule.min_lr + (schedule.max_lr - schedule.min_lr) * math.pow(left, schedule.power)


def _noam(schedule: ScheduleSpec, decay_steps: int, step: int) -> float:
    warmup = warmup_steps(schedule, decay_steps)
    # The smaller of the two; a warm-up of 1e-309 steps would divide by zero.
    factor = step / math.pow(warmup, 1.5) if step < warmup else 1.0 / math.sqrt(step)
    return schedule.max_lr * factor


def _constant(schedule: ScheduleSpec, decay_steps: int, step: int) -> float:
    warmup = warmup_steps(schedule, decay_steps)
    return schedule.max_lr * min(1.0, step / warmup) if warmup else schedule.max_lr


_FROM_ZERO = ("linear", "polynomial")
_SHAPES: dict[str, Schedule] = {
    "cosine": _cosine,
    "linear": _linear,
    "polynomial": _polynomial,
    "noam": _noam,
    "constant": _constant,
}
