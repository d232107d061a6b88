"""One device's model and optimizer in Paddle, behind the Session protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from gptbridge.rules import loss_scale
from gptbridge.rules.dropout import dropout_seed
from gptbridge.session import Batch, Device, StepResult, TrainerState
from gptbridge_paddle.loss import linear_cross_entropy, token_losses
from gptbridge_paddle.model import GPT
from gptbridge_paddle.optimizer import Optimizer
from gptbridge_paddle.weights import Weights
from gptbridge_specs import RunSpec

COMPUTE = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class PaddleSession:
    """A `gptbridge.session.Session`. Parameters are fp32; lower precision happens in auto_cast regions."""

    def __init__(self, spec: RunSpec, device: Device) -> None:
        self._spec = spec
        self._place = device.handle
        self._dtype = COMPUTE[spec.precision.compute]
        self._model = GPT(spec.model, spec.training.recompute)
        self._random = spec.model.hidden_dropout_prob > 0 or spec.model.attention_probs_dropout_prob > 0
        self._weights = Weights(spec.model, self._model)
        self._optimizer = Optimizer(spec.optimizer, list(self._weights.table.values()))
        self._state = loss_scale.initial_state(spec.precision)

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """Accumulate gradients over the micro-batches, clip, update once."""
        scale = self._state.loss_scale
        loss = self._accumulate(batch)
        grad_norm = self._optimizer.clip()
        overflowed = scale is not None and not math.isfinite(loss + grad_norm)
        if not overflowed:
            self._optimizer.update(learning_rate)
        self._state = loss_scale.after_step(self._state, self._spec.precision, overflowed=overflowed)
        return StepResult(loss, grad_norm, overflowed, scale)

    def gradients(self, batch: Batch) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the gradient of the step's loss for each weight, unclipped; change nothing."""
        self._accumulate(batch)
        yield from self._weights.export(_gradient)
        self._clear_gradients()

    def token_losses(self, inputs: NDArray[np.int32], labels: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the (B, T) negative log likelihood of each label, without dropout."""
        with paddle.no_grad(), self._precision():
            hidden = self._evaluate(inputs).flatten(0, 1)
            losses = token_losses(hidden, self._model.head, self._to_device(labels).flatten())
        return np.asarray(losses.numpy(), np.float32).reshape(labels.shape)

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens without dropout; (B, K, V) at positions `at` (B, K)."""
        with paddle.no_grad(), self._precision():
            hidden = self._evaluate(tokens)
            if at is not None:
                hidden = paddle.take_along_axis(hidden, self._to_device(at).unsqueeze(2), 1)
            logits = paddle.matmul(hidden, self._model.head, transpose_y=True)
        return np.asarray(logits.astype("float32").numpy(), np.float32)

    def export_weights(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield every weight, one at a time, in canonical order."""
        return self._weights.export(_weight)

    def import_weights(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Load every weight; KeyError for an absent or unknown name, ValueError for a wrong shape."""
        self._weights.load(_weight, weights)

    def export_optimizer(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield `NAME.exp_avg` and `NAME.exp_avg_sq` of every weight; nothing for SGD."""
        return self._weights.export(self._optimizer.moments)

    def import_optimizer(self, moments: Mapping[str, NDArray[np.float32]]) -> None:
        """Load every moment, under the same rules as `import_weights`."""
        self._weights.load(self._optimizer.moments, moments)

    def export_state(self) -> TrainerState:
        """Return the numbers that `import_state` needs to continue."""
        return self._state

    def import_state(self, state: TrainerState) -> None:
        """Continue from `state`."""
        self._state = loss_scale.continued(state, self._spec.precision)
        self._optimizer.set_updates(state.updates)

    def close(self) -> None:
        """Free the device."""
        del self._model, self._weights, self._optimizer
        if not self._place.is_cpu_place():
            paddle.device.cuda.empty_cache()

    def _accumulate(self, batch: Batch) -> float:
        """Leave the gradient of the step's loss in the parameters; return the loss."""
        self._model.train()
        self._clear_gradients()
        inputs = self._to_device(batch.inputs)
        labels = self._to_device(np.where(batch.loss_mask, batch.labels, 0))
        mask = paddle.to_tensor(batch.loss_mask.astype(np.float32), place=self._place)
        scale = self._state.loss_scale or 1.0
        total = paddle.zeros([])
        for n in range(len(inputs)):
            if self._random:
                # A generator on CPU takes the low 32 bits of these 63.
                paddle.seed(dropout_seed(self._spec.training.seed, batch.step, n))
            loss = self._masked_sum(inputs[n], labels[n], mask[n])
            (loss * (scale / batch.loss_tokens)).backward()
            total += loss.detach()
        if scale != 1.0:
            self._optimizer.scale_gradients(1 / scale)
        return float(total) / batch.loss_tokens

    def _masked_sum(self, inputs: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Return the sum of the unmasked tokens' negative log likelihood; all arguments (B, T)."""
        with self._precision():
            hidden = self._model(inputs).flatten(0, 1)
            return linear_cross_entropy(hidden, self._model.head, labels.flatten(), mask.flatten())

    def _clear_gradients(self) -> None:
        for parameter in self._weights.table.values():
            parameter.clear_gradient(set_to_zero=False)

    def _evaluate(self, tokens: NDArray[np.int32]) -> Tensor:
        """Return the final hidden states (B, T, H) of (B, T) tokens without dropout."""
        self._model.eval()
        return self._model(self._to_device(tokens))

    def _precision(self) -> Any:
        """Return the context in which the model computes."""
        enabled = self._dtype != "float32"
        return paddle.amp.auto_cast(enable=enabled, dtype=self._dtype if enabled else "float16", level="O1")

    def _to_device(self, array: NDArray[np.int32]) -> Tensor:
        return paddle.to_tensor(np.ascontiguousarray(array, np.int32), place=self._place)


def _weight(parameter: Tensor) -> dict[str, Tensor]:
    return {"": parameter}


def _gradient(parameter: Tensor) -> dict[str, Tensor]:
    return {} if parameter.grad is None else {"": parameter.grad}
