"""One device's model and optimizer in MindSpore, behind the Session protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from gptbridge.rules import loss_scale
from gptbridge.rules.dropout import dropout_seed
from gptbridge.session import Batch, Device, StepResult, TrainerState
from gptbridge_mindspore.dropout import DropoutMasks
from gptbridge_mindspore.loss import add_gradients
from gptbridge_mindspore.model import GPT
from gptbridge_mindspore.optimizer import Optimizer
from gptbridge_mindspore.shapes import pad, usual_size
from gptbridge_mindspore.weights import empty_weights, export_tensors, import_tensors
from gptbridge_specs import ModelSpec, RunSpec

LOSS = "loss"  # beside the gradients while they are summed
COMPUTE = {"fp32": ms.float32, "bf16": ms.bfloat16, "fp16": ms.float16}


@cache
def compiled_model(model: ModelSpec, granularity: str, compute: str) -> GPT:
    """Return the model, which holds no weights: sessions of one spec share what is compiled."""
    return GPT(model, granularity, COMPUTE[compute])


class MindSporeSession:
    """A `gptbridge.session.Session`. Weights are fp32; lower precision happens in matrix products."""

    def __init__(self, spec: RunSpec, device: Device) -> None:
        self._spec = spec
        self._model = compiled_model(spec.model, spec.training.recompute, spec.precision.compute)
        self._weights = empty_weights(spec.model)
        self._optimizer = Optimizer(spec.optimizer, self._weights)
        self._state = loss_scale.initial_state(spec.precision)

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """Accumulate gradients over the micro-batches, clip, update once."""
        scale = self._state.loss_scale
        loss, gradients = self._accumulate(batch)
        norm, clipped = self._optimizer.clip(gradients, scale or 1.0)
        # Only an fp16 step must be seen before it is applied; otherwise the update is queued first.
        overflowed = scale is not None and not math.isfinite(float(norm))
        if not overflowed:
            self._optimizer.update(clipped, learning_rate, self._state.updates + 1)
        self._state = loss_scale.after_step(self._state, self._spec.precision, overflowed=overflowed)
        return StepResult(float(loss) / (scale or 1.0), float(norm), overflowed, scale)

    def gradients(self, batch: Batch) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the gradient of the step's loss for each weight, unclipped; change nothing."""
        _, gradients = self._accumulate(batch)
        for name, gradient in export_tensors({name: gradients[name] for name in self._weights}):
            yield name, gradient / np.float32(self._state.loss_scale or 1.0)

    def token_losses(self, inputs: NDArray[np.int32], labels: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the (B, T) negative log likelihood of each label, without dropout."""
        losses = []
        for part, shape, rows in self._hidden(inputs):
            padded = pad(labels[part], shape).ravel()
            found = self._model.token_losses(self._weights, rows, padded).asnumpy().reshape(shape)
            samples, length = labels[part].shape
            losses.append(found[:samples, :length])
        return np.concatenate(losses)

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens without dropout; (B, K, V) at positions `at` (B, K)."""
        if at is None:
            at = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        logits = []
        for part, (_, length), rows in self._hidden(tokens):
            wanted = at[part] + length * np.arange(len(at[part]), dtype=np.int32)[:, None]
            padded = pad(wanted.ravel(), (usual_size(wanted.size),))
            found = self._model.logits(self._weights, ops.gather(rows, Tensor(padded), 0)).asnumpy()
            logits.append(found[: wanted.size].reshape(*wanted.shape, -1))
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

    def export_state(self) -> TrainerState:
        """Return the numbers that `import_state` needs to continue."""
        return self._state

    def import_state(self, state: TrainerState) -> None:
        """Continue from `state`."""
        self._state = loss_scale.continued(state, self._spec.precision)

    def close(self) -> None:
        """Free the device."""
        del self._model, self._weights, self._optimizer

    def _accumulate(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the step and its gradients, both times the loss scale."""
        labels = np.where(batch.loss_mask, batch.labels, 0)  # a label that does not count may be anything
        share = batch.loss_mask * np.float32((self._state.loss_scale or 1.0) / batch.loss_tokens)
        total: dict[str, Tensor] = {}
        for n in range(len(batch.inputs)):
            seed = dropout_seed(self._spec.training.seed, batch.step, n)
            dropout = DropoutMasks(self._spec.model, seed)
            loss, gradients = self._model.loss_and_gradients(
                self._weights, batch.inputs[n], labels[n], share[n], dropout
            )
            add_gradients(total, {LOSS: loss, **gradients})
        return total.pop(LOSS), total

    def _hidden(self, tokens: NDArray[np.int32]) -> Iterator[tuple[slice, tuple[int, int], Tensor]]:
        """Yield slices of (B, T) tokens, the usual (B, T) they are padded to, and their hidden rows."""
        spec = self._spec
        most = spec.micro_batch_size
        length = usual_size(tokens.shape[1], spec.training.seq_length, spec.model.max_position_embeddings)
        for start in range(0, len(tokens), most):
            part = slice(start, start + most)
            shape = usual_size(len(tokens[part]), most, smallest=1), length
            yield part, shape, self._model.hidden(self._weights, pad(tokens[part], shape))
