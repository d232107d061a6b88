"""One model and its optimizer in NumPy: each step in float64, what is kept in float32."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from gptbridge import reference
from gptbridge.session import EXP_AVG, EXP_AVG_SQ, Batch, StepResult, TrainerState
from gptbridge.weights.canonical import parameters
from gptbridge_specs import RunSpec

Arrays = dict[str, NDArray[np.float32]]


class NumpySession:
    """Implements `gptbridge.session.Session`."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._weights: Arrays = {p.name: np.zeros(p.shape, np.float32) for p in parameters(spec.model)}
        suffixes = (EXP_AVG, EXP_AVG_SQ) if spec.optimizer.name == "adamw" else ()
        self._moments: Arrays = {
            name + suffix: np.zeros_like(array)
            for name, array in self._weights.items()
            for suffix in suffixes
        }
        self._state = TrainerState()

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """Accumulate gradients over the micro-batches, clip, update once."""
        model, optimizer = self._spec.model, self._spec.optimizer
        loss, gradients = self._accumulate(batch)
        self._state = replace(self._state, updates=self._state.updates + 1)
        if optimizer.name == "adamw":
            weights, moments = reference.adamw_step(
                model,
                optimizer,
                self._weights,
                self._moments,
                gradients,
                learning_rate,
                self._state.updates,
            )
            _store(self._moments, moments)
        else:
            weights = reference.sgd_step(model, optimizer, self._weights, gradients, learning_rate)
        _store(self._weights, weights)
        return StepResult(loss, reference.gradient_norm(gradients))

    def gradients(self, batch: Batch) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the gradient of the step's loss for each weight, unclipped; change nothing."""
        _, gradients = self._accumulate(batch)
        for name in self._weights:
            yield name, gradients[name].astype(np.float32)

    def token_losses(self, inputs: NDArray[np.int32], labels: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the (B, T) negative log likelihood of each label."""
        losses = reference.token_losses(self._spec.model, self._weights, inputs, labels)
        return losses.astype(np.float32)

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens; (B, K, V) at positions `at` (B, K)."""
        logits = reference.logits(self._spec.model, self._weights, tokens).astype(np.float32)
        return logits if at is None else np.take_along_axis(logits, at[..., None], 1)

    def export_weights(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield every weight, one at a time, in canonical order."""
        return ((name, array.copy()) for name, array in self._weights.items())

    def import_weights(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Load every weight; KeyError for an absent or unknown name, ValueError for a wrong shape."""
        _load(self._weights, weights)

    def export_optimizer(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield `NAME.exp_avg` and `NAME.exp_avg_sq` of every weight; nothing for SGD."""
        return ((name, array.copy()) for name, array in self._moments.items())

    def import_optimizer(self, moments: Mapping[str, NDArray[np.float32]]) -> None:
        """Load every moment, under the same rules as `import_weights`."""
        _load(self._moments, moments)

    def export_state(self) -> TrainerState:
        """Return the number of updates."""
        return self._state

    def import_state(self, state: TrainerState) -> None:
        """Continue from `state`."""
        self._state = state

    def close(self) -> None:
        """Nothing to free: NumPy's memory goes with the session."""

    def _accumulate(self, batch: Batch) -> tuple[float, dict[str, reference.Array]]:
        """Return loss and gradients of the step: the sums over its micro-batches."""
        total, sums = 0.0, {name: np.zeros(array.shape) for name, array in self._weights.items()}
        for n in range(len(batch.inputs)):
            one = slice(n, n + 1)
            part = replace(
                batch, inputs=batch.inputs[one], labels=batch.labels[one], loss_mask=batch.loss_mask[one]
            )
            loss, gradients = reference.loss_and_gradients(self._spec.model, self._weights, part)
            total += loss
            for name, gradient in gradients.items():
                sums[name] += gradient
        return total, sums


def _load(own: Arrays, given: Mapping[str, NDArray[np.float32]]) -> None:
    """Copy `given` into `own`; refuse what does not fit before anything is changed."""
    for name in given:
        if name not in own:
            raise KeyError(f"{name}: unknown")
    loaded = {}
    for name, array in own.items():
        if name not in given:
            raise KeyError(f"{name}: absent")
        loaded[name] = np.array(given[name], np.float32)
        if loaded[name].shape != array.shape:
            raise ValueError(f"{name}: shape {loaded[name].shape}, not {array.shape}")
    own.update(loaded)


def _store(own: Arrays, computed: Mapping[str, reference.Array]) -> None:
    own.update({name: computed[name].astype(np.float32) for name in own})
