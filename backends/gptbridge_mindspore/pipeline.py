"""What the stages of a pipeline do in which order, and what they pass to each other.

A CPU's collectives meet: a rank waits until the other is there. So all ranks go through the passes of one
order for all of them, each doing what concerns it, and no two wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mindspore import Tensor

from gptbridge.rules.pipelining import Turn, turns
from gptbridge_mindspore.collectives import receive, send
from gptbridge_mindspore.parallel import Groups
from gptbridge_specs.run import ParallelSpec


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
    """Yield what the stages do at the same time, of each at most one turn, until all are done."""
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


class Neighbours:
    """The stages before and after this one."""

    def __init__(self, parallel: ParallelSpec, stage: int, groups: Groups) -> None:
        self._stages, self._count = parallel.pipeline, parallel.pipeline * parallel.virtual_pipeline
        self._stage, self._onward, self._back = stage, groups.onward, groups.back
        self._arrived: dict[tuple[int, int, bool], Tensor] = {}

    def exchange(self, now: list[Pass], results: Mapping[int, Tensor], shape: tuple[int, ...]) -> None:
        """Pass on what came out of turns at the same time: `results` by virtual stage, if they are here."""
        for each in now:
            if not 0 <= each.following < self._count:
                continue
            taker = each.following % self._stages
            key = (each.following, each.turn.micro_batch, each.turn.backward)
            if each.stage == taker == self._stage:
                self._arrived[key] = results[each.number]
                continue
            if self._onward is None or self._back is None or self._stage not in (each.stage, taker):
                continue
            towards, along = (self._back, self._onward) if each.turn.backward else (self._onward, self._back)
            if each.stage == self._stage:
                send(results[each.number], towards)
            else:
                self._arrived[key] = receive(shape, along)

    def taken(self, each: Pass) -> Tensor:
        """Return what arrived for a turn."""
        return self._arrived.pop((each.number, each.turn.micro_batch, each.turn.backward))
