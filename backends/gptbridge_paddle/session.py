"""One rank of a run on Paddle: the training step, evaluation, and the state that a checkpoint holds."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from gptbridge.session import EXP_AVG, EXP_AVG_SQ, Batch, Device, SessionState, StepResult
from gptbridge.training.loss_scale import after_step, initial_state
from gptbridge.weights.canonical import dropout_seed, parameters
from gptbridge_paddle.model import GPT, IGNORED
from gptbridge_paddle.optimizer import build_optimizer, global_norm
from gptbridge_paddle.weights import canonical_tensors, export_tensors, import_tensors
from gptbridge_specs import RunSpec

DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


class PaddleSession:
    """Model and optimizer on one device; implements `gptbridge.session.Session`."""

    def __init__(self, spec: RunSpec, device: Device) -> None:
        self._spec = spec
        self._device = device
        table = parameters(spec.model)
        self._model = GPT(spec.model, spec.training.recompute)
        self._weights = canonical_tensors(self._model, table)
        self._optimizer = build_optimizer(self._weights, table, spec.optimizer)
        self._state = initial_state(spec.precision)

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """Accumulate gradients over the micro-batches, clip, update once."""
        scale = self._state.loss_scale
        loss = self._accumulate(batch, scale or 1.0)
        norm = float(global_norm(self._weights)) / (scale or 1.0)
        overflowed = scale is not None and not math.isfinite(norm)
        if not overflowed:
            self._scale_gradients(1 / (scale or 1.0) * self._clip_factor(norm))
            with paddle.no_grad():
                self._optimizer.update(learning_rate, self._state.updates + 1)
        self._clear_gradients()
        self._state = after_step(self._state, self._spec.precision, overflowed=overflowed)
        return StepResult(loss, norm, skipped=overflowed, loss_scale=scale)

    def gradients(self, batch: Batch) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the gradient of the step's loss for each weight, unclipped; change nothing."""
        scale = self._state.loss_scale or 1.0
        self._accumulate(batch, scale)
        self._scale_gradients(1 / scale)
        yield from export_tensors({name: weight.grad for name, weight in self._weights.items()})
        self._clear_gradients()

    def token_losses(self, inputs: NDArray[np.int32], labels: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the (B, T) negative log likelihood of each label, without dropout."""
        self._model.eval()
        with paddle.no_grad(), self._precision():
            losses = self._model.token_losses(self._tensor(inputs), self._tensor(labels), "none")
        return np.array(losses.numpy(), np.float32)

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens without dropout; (B, K, V) at positions `at` (B, K)."""
        self._model.eval()
        with paddle.no_grad(), self._precision():
            hidden = self._model(self._tensor(tokens))
            if at is not None:
                hidden = paddle.take_along_axis(hidden, self._tensor(at)[:, :, None], axis=1)
            logits = self._model.logits(hidden)
        return np.array(logits.astype("float32").numpy())

    def export_weights(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield every weight, one at a time, in canonical order."""
        return export_tensors(self._weights)

    def import_weights(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Load every weight; KeyError for an absent or unknown name, ValueError for a wrong shape."""
        import_tensors(weights, self._weights)

    def export_optimizer(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield `NAME.exp_avg` and `NAME.exp_avg_sq` of every weight; nothing for SGD."""
        return export_tensors(self._moments())

    def import_optimizer(self, moments: Mapping[str, NDArray[np.float32]]) -> None:
        """Load every moment, under the same rules as `import_weights`."""
        import_tensors(moments, self._moments())

    def export_state(self) -> SessionState:
        """Return the numbers that `import_state` needs to continue."""
        return self._state

    def import_state(self, state: SessionState) -> None:
        """Continue from `state`."""
        self._state = state

    def close(self) -> None:
        """Free the device."""
        del self._model, self._weights, self._optimizer

    def _accumulate(self, batch: Batch, scale: float) -> float:
        """Add the gradients of `scale` x the step's loss over all micro-batches; return the loss."""
        self._model.train()
        labels = np.where(batch.loss_mask, batch.labels, np.int32(IGNORED))
        total = paddle.zeros([])
        for n in range(len(batch.inputs)):
            paddle.seed(dropout_seed(self._spec.training.seed, batch.step, n))
            with self._precision():
                loss = self._model.token_losses(self._tensor(batch.inputs[n]), self._tensor(labels[n]), "sum")
                loss = loss / batch.loss_tokens
            (loss * scale if scale != 1.0 else loss).backward()
            total = total + loss.detach()
        return float(total)

    def _clip_factor(self, norm: float) -> float:
        """Return what brings gradients of global norm `norm` down to the largest one allowed."""
        limit = self._spec.optimizer.clip_grad_norm
        return 1.0 if limit is None or norm <= limit else limit / norm

    def _scale_gradients(self, factor: float) -> None:
        if factor != 1.0:
            with paddle.no_grad():
                for weight in self._weights.values():
                    weight.grad.scale_(factor)

    def _clear_gradients(self) -> None:
        for weight in self._weights.values():
            weight.clear_gradient(set_to_zero=False)

    def _moments(self) -> dict[str, Tensor]:
        optimizer = self._optimizer
        by_name = ((EXP_AVG, optimizer.exp_avg), (EXP_AVG_SQ, optimizer.exp_avg_sq))
        return {name + suffix: moments[name] for name in optimizer.exp_avg for suffix, moments in by_name}

    def _precision(self) -> AbstractContextManager[None]:
        """Return the context in which the model computes: master weights stay fp32."""
        dtype = DTYPES.get(self._spec.precision.compute)
        context: AbstractContextManager[None] = paddle.amp.auto_cast(
            enable=dtype is not None, dtype=dtype or "float16", level="O1"
        )
        return context

    def _tensor(self, array: NDArray[np.int32]) -> Tensor:
        return paddle.to_tensor(np.ascontiguousarray(array, np.int32), place=self._device.handle)
