"""Training through pipeline stages, by the schedules of torch.distributed.pipelining."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, schedules

from gptbridge.process.place import Place
from gptbridge_specs.run import ParallelSpec
from gptbridge_torch.model import GPT
from gptbridge_torch.parallel import Groups

# By the spec's word, and whether a rank has several stages.
SCHEDULES = {
    ("gpipe", False): schedules.ScheduleGPipe,
    ("gpipe", True): schedules.ScheduleLoopedBFS,
    ("1f1b", False): schedules.Schedule1F1B,
    ("1f1b", True): schedules.ScheduleInterleaved1F1B,
}
IGNORED = -1  # the label of a token that does not count


class Pipeline:
    """The order in which a rank's stages see the micro-batches of a step.

    `loss(hidden, labels, mask)` is the sum of the unmasked tokens' losses.
    """

    def __init__(
        self,
        parallel: ParallelSpec,
        place: Place,
        groups: Groups,
        stages: Sequence[GPT],
        loss: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> None:
        self._parallel, self._place, self._groups = parallel, place, groups
        self._stages = stages
        self._loss = loss
        self._made: dict[tuple[int, ...], Any] = {}

    def run(
        self,
        tokens: Tensor,
        labels: Tensor,
        mask: Tensor,
        factor: float,
        seeds: Tensor | None,
        starts: Tensor | None,
    ) -> Tensor:
        """Return the sum of the losses of A micro-batches, on all but the last stage 0; arguments (A, B, T).

        Adds the gradient of `factor` x that sum to the gradients. Dropout is drawn from `seeds` (A,); records
        begin at `starts`.
        """
        schedule = self._schedule(tokens)
        self._factor, self._total = factor, torch.zeros((), device=tokens.device)
        target = torch.where(mask, labels, IGNORED).flatten(0, 1) if self._place.last else None
        given = (tokens.flatten(0, 1),) if self._place.first else ()
        seen = {} if seeds is None else {"seed": seeds}
        if starts is not None:
            seen["starts"] = starts.flatten(0, 1)
        losses: list[Tensor] | None = [] if self._place.last else None
        schedule.step(*given, target=target, losses=losses, return_outputs=False, **seen)
        return self._total

    def _scaled(self, hidden: Tensor, target: Tensor) -> Tensor:
        total = self._loss(hidden, target.clamp(min=0), target != IGNORED)
        self._total += total.detach()
        return total * self._factor

    def _schedule(self, tokens: Tensor) -> Any:
        shape = tuple(tokens.shape)
        if shape not in self._made:
            stages = [self._stage(number, stage, tokens[0]) for number, stage in enumerate(self._stages)]
            several = self._parallel.virtual_pipeline > 1
            kind: Any = SCHEDULES[self._parallel.pipeline_schedule, several]
            self._made[shape] = kind(
                stages if several else stages[0], shape[0], loss_fn=self._scaled, scale_grads=False
            )
        return self._made[shape]

    def _stage(self, number: int, stage: GPT, tokens: Tensor) -> PipelineStage:
        """Return the stage as torch knows it; told the shapes, it runs no trial step to find them."""
        ranks = self._place.degree("pipeline")
        start, stop = stage.span(tokens.shape[1])
        stream = torch.empty(
            (len(tokens), stop - start, stage.width),
            dtype=stage.stream_dtype,
            device="meta",
            requires_grad=True,
        )
        final = torch.empty(
            (*tokens.shape, stage.width), dtype=stage.dtype, device="meta", requires_grad=True
        )
        return PipelineStage(
            stage,
            number * ranks + self._place.index("pipeline"),
            ranks * len(self._stages),
            tokens.device,
            input_args=tokens.to("meta") if stage.first else stream,
            output_args=final if stage.last else stream,
            group=self._groups.pipeline,
        )
