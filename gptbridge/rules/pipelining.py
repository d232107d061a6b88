"""In which order a pipeline stage takes its micro-batches forward and backward."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from gptbridge_specs.run import ParallelSpec


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


@dataclass(frozen=True, slots=True)
class Pass:
    """A turn of a stage: `number` counts the virtual stages from the first layers of the model."""

    stage: int
    number: int
    turn: Turn

    @property
    def following(self) -> int:
        """The virtual stage that takes what comes out, if there is one."""
        return self.number - 1 if self.turn.backward else self.number + 1


def ordered(parallel: ParallelSpec, micro_batches: int) -> Iterator[list[Pass]]:
    """Yield what the stages do at the same time, of each at most one turn, until all are done.

    Where what is sent waits until it is received, ranks that pass on what came out of turns in this order,
    each what concerns it, never wait for each other.
    """
    stages, virtual = parallel.pipeline, parallel.virtual_pipeline
    left = [
        turns(parallel.pipeline_schedule, stage, stages, virtual, micro_batches)[::-1]
        for stage in range(stages)
    ]
    done: set[tuple[int, int, bool]] = set()
    while any(left):
        now = [
            Pass(stage, turn[-1].run * stages + stage, turn[-1]) for stage, turn in enumerate(left) if turn
        ]
        now = [each for each in now if _needed(each, stages * virtual) <= done]
        for each in now:
            left[each.stage].pop()
        done |= {(each.number, each.turn.micro_batch, each.turn.backward) for each in now}
        yield now


def _needed(each: Pass, stages: int) -> set[tuple[int, int, bool]]:
    """Return what must be done before: the same micro-batch in the stage before, or the one behind."""
    n, back = each.turn.micro_batch, each.turn.backward
    if not back:
        return {(each.number - 1, n, False)} if each.number else set()
    return {(each.number, n, False)} | ({(each.number + 1, n, True)} if each.number + 1 < stages else set())
