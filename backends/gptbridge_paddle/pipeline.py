"""A rank's stage of a pipeline: what it passes to the stages beside it, and in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import paddle
from paddle import Tensor

from gptbridge.rules.pipelining import Turn
from gptbridge_paddle.collectives import receive, send
from gptbridge_paddle.model import GPT
from gptbridge_paddle.parallel import Groups


class Pipeline:
    """The runs of layers of one stage; a stage that is the only one passes nothing."""

    def __init__(self, runs: Sequence[GPT], groups: Groups) -> None:
        self._runs = runs
        self._groups = groups
        self._sent: list[Future[Any]] = []

    def read(self, run_layers: Callable[[GPT, Tensor], Tensor], tokens: Tensor, shape: list[int]) -> Tensor:
        """Return what the model's last layers make of `tokens`; on other stages, whatever they passed on.

        `run_layers(run, x)` are those of one run; between stages x has `shape`.
        """
        x = tokens
        for run in self._runs:
            x = run_layers(run, tokens if run.first else self._receive(shape, self._groups.incoming))
            if not run.last:
                self._send(x, self._groups.onward)
        self._settle()
        return x

    def train(
        self,
        turns: Sequence[Turn],
        forward: Callable[[GPT, int, Tensor | None], Tensor],
        factor: float,
        shape: list[int],
    ) -> Tensor:
        """Take the turns of a step; return the sum of the losses, 0 on all stages but the last.

        `forward(run, n, x)` passes micro-batch n, or x of `shape` that became of it, through a run's layers:
        it returns x for the next run, the loss after the last. Gradients are those of `factor` x the losses.
        """
        alive: dict[tuple[int, int], tuple[Tensor | None, Tensor]] = {}
        total = paddle.zeros([])
        for turn in turns:
            run, key = self._runs[turn.run], (turn.run, turn.micro_batch)
            if turn.backward:
                self._backward(run, *alive.pop(key), factor, shape)
                continue
            x = None if run.first else self._receive(shape, self._groups.incoming)
            if x is not None:
                x.stop_gradient = False
            y = forward(run, turn.micro_batch, x)
            alive[key] = x, y
            if run.last:
                total += y.detach()
            else:
                self._send(y, self._groups.onward)
        self._settle()
        return total

    def _backward(self, run: GPT, x: Tensor | None, y: Tensor, factor: float, shape: list[int]) -> None:
        if run.last:
            (y * factor).backward()
        else:
            y.backward(self._receive(shape, self._groups.returning))
        if x is not None:
            self._send(x.grad, self._groups.back)

    def _send(self, x: Tensor, pair: Any) -> None:
        self._sent.append(send(x, pair))

    def _receive(self, shape: list[int], pair: Any) -> Tensor:
        return receive(shape, pair)

    def _settle(self) -> None:
        """Wait until all that was sent has arrived; raise what went wrong on the way."""
        for sent in self._sent:
            sent.result()
        self._sent.clear()
