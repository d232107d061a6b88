"""One device's model and optimizer in MindSpore, behind the Session protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from gptbridge.session import Batch, Device, SessionState, StepResult
from gptbridge.training import loss_scale
from gptbridge.weights.canonical import dropout_seed
from gptbridge_mindspore.dropout import DropoutMasks
from gptbridge_mindspore.model import GPT, add_gradients
from gptbridge_mindspore.optimizer import Optimizer
from gptbridge_mindspore.shapes import pad, usual_size
from gptbridge_mindspore.weights import empty_weights, export_tensors, import_tensors
from gptbridge_specs import RunSpec

COMPUTE = {"fp32": ms.float32, "bf16": ms.bfloat16, "fp16": ms.float16}


class MindSporeSession:
    """A `gptbridge.session.Session`. Weights are fp32; lower precision happens in matrix products."""

    def __init__(self, spec: RunSpec, device: Device) -> None:
        self._spec = spec
        self._model = GPT(spec.model, spec.training.recompute, COMPUTE[spec.precision.compute])
        self._weights = empty_weights(spec.model)
        self._optimizer = Optimizer(spec.optimizer, self._weights)
        self._state = loss_scale.initial_state(spec.precision)

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """Accumulate gradients over the micro-batches, clip, update once."""
        scale = self._state.loss_scale
        loss, gradients = self._accumulate(batch)
        norm = self._optimizer.global_norm(gradients) / (scale or 1.0)
        overflowed = scale is not None and not math.isfinite(norm)
        if not overflowed:
            limit = self._spec.optimizer.clip_grad_norm or math.inf
            factor = min(1.0, limit / norm) if norm > 0 else 1.0
            self._optimizer.update(gradients, factor / (scale or 1.0), learning_rate, self._state.updates + 1)
        self._state = loss_scale.after_step(self._state, self._spec.precision, overflowed=overflowed)
        return StepResult(loss, norm, overflowed, scale)

    def gradients(self, batch: Batch) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the gradient of the step's loss for each weight, unclipped; change nothing."""
        _, gradients = self._accumulate(batch)
        for name, gradient in export_tensors({name: gradients[name] for name in self._weights}):
            yield name, gradient / np.float32(self._state.loss_scale or 1.0)

    def token_losses(self, inputs: NDArray[np.int32], labels: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the (B, T) negative log likelihood of each label, without dropout."""
        length = inputs.shape[1]
        losses = []
        for part, hidden in self._hidden(inputs):
            shape = hidden.shape[:2]
            rows = self._model.token_losses(self._weights, _rows(hidden), pad(labels[part], shape).ravel())
            losses.append(rows.asnumpy().reshape(shape)[: len(inputs[part]), :length])
        return np.concatenate(losses)

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens without dropout; (B, K, V) at positions `at` (B, K)."""
        if at is None:
            at = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        logits = []
        for part, hidden in self._hidden(tokens):
            wanted = at[part] + hidden.shape[1] * np.arange(len(at[part]), dtype=np.int32)[:, None]
            padded = pad(wanted.ravel(), (usual_size(wanted.size),))
            rows = self._model.logits(self._weights, ops.gather(_rows(hidden), Tensor(padded), 0))
            logits.append(rows.asnumpy()[: wanted.size].reshape(*wanted.shape, -1))
        return np.concatenate(logits)

    def export_weights(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield every weight, one at a time, in canonical order."""
        return export_tensors(self._weights)

    def import_weights(self, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Load every weight; KeyError for an absent or unknown name, ValueError for a wrong shape."""
        import_tensors(self._weights, weights)

    def export_optimizer(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield `NAME.exp_avg` and `NAME.exp_avg_sq` of every weight; nothing for SGD."""
        return export_tensors(self._optimizer.moments)

    def import_optimizer(self, moments: Mapping[str, NDArray[np.float32]]) -> None:
        """Load every moment, under the same rules as `import_weights`."""
        import_tensors(self._optimizer.moments, moments)

    def export_state(self) -> SessionState:
        """Return the numbers that `import_state` needs to continue."""
        return self._state

    def import_state(self, state: SessionState) -> None:
        """Continue from `state`."""
        self._state = loss_scale.continued(state, self._spec.precision)

    def close(self) -> None:
        """Free the device."""
        del self._model, self._weights, self._optimizer

    def _accumulate(self, batch: Batch) -> tuple[float, dict[str, Tensor]]:
        """Return the loss of the step and its gradients times the loss scale."""
        scale = self._state.loss_scale or 1.0
        total = 0.0
        gradients: dict[str, Tensor] = {}
        for n, (inputs, labels, mask) in enumerate(
            zip(batch.inputs, batch.labels, batch.loss_mask, strict=True)
        ):
            share = mask * np.float32(scale / batch.loss_tokens)
            seed = dropout_seed(self._spec.training.seed, batch.step, n)
            loss, of_part = self._model.loss_and_gradients(
                self._weights, inputs, labels, share, DropoutMasks(self._spec.model, seed)
            )
            add_gradients(gradients, of_part)
            total += float(loss) / scale
        return total, gradients

    def _hidden(self, tokens: NDArray[np.int32]) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the (B, T) tokens and their hidden states, padded to a usual (B, T, H)."""
        most = self._spec.micro_batch_size
        length = usual_size(
            tokens.shape[1], self._spec.training.seq_length, self._spec.model.max_position_embeddings
        )
        for start in range(0, len(tokens), most):
            part = slice(start, start + most)
            samples = 1 << (len(tokens[part]) - 1).bit_length()
            yield part, self._model.hidden(self._weights, pad(tokens[part], (min(samples, most), length)))


def _rows(hidden: Tensor) -> Tensor:
    """Return (B T, H) from (B, T, H)."""
    return hidden.reshape(-1, hidden.shape[-1])
