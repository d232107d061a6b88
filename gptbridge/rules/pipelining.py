"""In which order a pipeline stage takes its micro-batches forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Turn:
    """One pass of one micro-batch through one run of a stage's layers: a virtual stage."""

    run: int
    micro_batch: int
    backward: bool = False


def turns(
    schedule: Literal["gpipe", "1f1b"], stage: int, stages: int, virtual: int, micro_batches: int
) -> list[Turn]:
    """Return what `stage` does in a step; it can be done where what a stage passes on waits for no other.

    gpipe: all forward, then all backward. 1f1b: backward as soon as may be, so that few micro-batches have
    activations; with several runs a stage, micro-batches go through them by rounds of `stages`, which must
    divide their number.
    """
    if schedule == "gpipe":
        forward = [Turn(run, n) for run in range(virtual) for n in range(micro_batches)]
        backward = [Turn(run, n, True) for run in reversed(range(virtual)) for n in range(micro_batches)]
        return forward + backward
    if virtual > 1 and micro_batches % stages:
        raise ValueError(f"{micro_batches} micro-batches are no rounds of {stages}")
    forward = list(_by_rounds(stages, virtual, micro_batches, back=False))
    backward = list(_by_rounds(stages, virtual, micro_batches, back=True))
    ahead = stages - 1 - stage if virtual == 1 else 2 * (stages - 1 - stage) + (virtual - 1) * stages
    ahead = min(ahead, len(forward))
    steady = [turn for pair in zip(forward[ahead:], backward, strict=False) for turn in pair]
    return [*forward[:ahead], *steady, *backward[len(forward) - ahead :]]


def _by_rounds(stages: int, virtual: int, micro_batches: int, *, back: bool) -> Iterator[Turn]:
    size = stages if virtual > 1 else micro_batches
    for start in range(0, micro_batches, size):
        for run in reversed(range(virtual)) if back else range(virtual):
            yield from (Turn(run, n, back) for n in range(start, start + size))
