"""What a stage of a pipeline passes to those before and after it."""

from __future__ import annotations

from collections.abc import Mapping

from mindspore import Tensor

from gptbridge.rules.pipelining import Pass
from gptbridge_mindspore.collectives import receive, send
from gptbridge_mindspore.parallel import Groups
from gptbridge_specs.run import ParallelSpec


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
