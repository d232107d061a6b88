"""The optimizer step of every backend: what happens in which order, and what decides it.

A backend subclasses `Stepper` and says how its framework does each part.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from gptbridge.rules.loss_scale import after_step, initial_state
from gptbridge.session import Batch, StepResult, TrainerState
from gptbridge_specs import RunSpec

Labels = NDArray[Any]  # int32, or the float32 of a regression
T = TypeVar("T")  # the framework's scalar, perhaps still being computed


class Stepper(ABC, Generic[T]):
    """`step`, `accumulate` and `state` of `gptbridge.session.Trainer`.

    `before_update` is called in each step before a weight or a moment changes: a save may be reading them.
    """

    state: TrainerState
    before_update: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self, spec: RunSpec) -> None:
        self._precision = spec.precision
        self.state = initial_state(spec.precision)

    @abstractmethod
    def clear_gradients(self) -> None:
        """Make every gradient 0."""

    @abstractmethod
    def backward(
        self,
        inputs: NDArray[np.int32],
        labels: Labels,
        mask: NDArray[np.bool_],
        factor: float,
        seed: int,
        starts: NDArray[np.int32] | None = None,
    ) -> T:
        """Return the sum of the unmasked tokens' losses of one micro-batch; all arrays are (B, T).

        Adds the gradient of `factor` x that sum to the gradients. Labels that do not count are 0. `starts`
        are a Batch's; where it has none, they are left out.
        """

    def run(self, batch: Batch, labels: Labels, factor: float) -> T:
        """Return the sum of this rank's unmasked losses of all micro-batches, one after the other.

        Adds the gradient of `factor` x that sum to the gradients. A pipeline has an order of its own.
        """
        total: Any = None
        for n, seed in enumerate(batch.dropout_seeds):
            packed = () if batch.starts is None else (batch.starts[n],)
            loss = self.backward(batch.inputs[n], labels[n], batch.loss_mask[n], factor, seed, *packed)
            total = loss if total is None else total + loss
        return total  # type: ignore[no-any-return]

    def combine(self, total: T) -> T:
        """Sum over the ranks what each has of the gradients; return the sum of their totals."""
        return total

    @abstractmethod
    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient by `factor`."""

    @abstractmethod
    def clip(self) -> T:
        """Scale the gradients down to the norm that the spec allows; return their norm before."""

    @abstractmethod
    def update(self, learning_rate: float, count: int) -> None:
        """Change the weights by their gradients; `count` numbers the update, 1 is the first."""

    @abstractmethod
    def measure(self, *scalars: T) -> Callable[[], list[float]]:
        """Return a function that waits for `scalars` alone: work queued after this call goes on."""

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """Accumulate gradients over the micro-batches, clip, update once."""
        scale = self.state.loss_scale
        measured = self.measure(self._accumulate(batch), self.clip())
        # Only an fp16 step must be seen before it is applied; otherwise the update is queued first.
        overflowed = scale is not None and not all(map(math.isfinite, measured()))
        if not overflowed:
            self.before_update()
            self.update(learning_rate, self.state.updates + 1)
        self.state = after_step(self.state, self._precision, overflowed=overflowed)
        loss, grad_norm = measured()
        return StepResult(loss / batch.loss_tokens, grad_norm, overflowed, scale)

    def accumulate(self, batch: Batch) -> None:
        """Leave the gradient of the step's loss in the gradients; change nothing else."""
        self._accumulate(batch)

    def _accumulate(self, batch: Batch) -> T:
        """Leave the step's gradient in the gradients; return the sum of the unmasked tokens' losses."""
        self.clear_gradients()
        labels = np.where(batch.loss_mask, batch.labels, 0)  # a label that does not count may be anything
        scale = self.state.loss_scale or 1.0
        factor = scale / batch.loss_tokens
        total = self.combine(self.run(batch, labels, factor))
        if scale != 1.0:
            self.scale_gradients(1 / scale)
        return total
