"""One device's model and optimizer in torch, behind the Session protocol."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gptbridge.rules import loss_scale
from gptbridge.rules.dropout import dropout_seed
from gptbridge.session import Batch, Device, SessionState, StepResult
from gptbridge_specs import RunSpec
from gptbridge_torch.hardware import read_back
from gptbridge_torch.loss import linear_cross_entropy, token_losses
from gptbridge_torch.model import GPT
from gptbridge_torch.optimizer import Optimizer
from gptbridge_torch.weights import Weights

COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# fp16 ends at 65504, which the residual stream of a deep model can pass.
STREAM = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float32}


class TorchSession:
    """A `gptbridge.session.Session`. Parameters are fp32; lower precision happens in autocast regions."""

    def __init__(self, spec: RunSpec, device: Device) -> None:
        self._spec = spec
        self._device: torch.device = device.handle
        self._dtype = COMPUTE[spec.precision.compute]
        with torch.device("meta"):  # draws no initial weights: they are imported
            model = GPT(spec.model, spec.training.recompute, STREAM[spec.precision.compute])
        self._model = model.to_empty(device=self._device)
        self._random = spec.model.hidden_dropout_prob > 0 or spec.model.attention_probs_dropout_prob > 0
        self._weights = Weights(spec.model, self._model)
        self._optimizer = Optimizer(spec.optimizer, list(self._weights.table.values()))
        compiled = spec.training.compile
        self._loss = torch.compile(self._masked_sum, dynamic=False) if compiled else self._masked_sum
        self._state = loss_scale.initial_state(spec.precision)

    def step(self, batch: Batch, learning_rate: float) -> StepResult:
        """Accumulate gradients over the micro-batches, clip, update once."""
        scale = self._state.loss_scale
        loss = self._accumulate(batch)
        measured = read_back(torch.stack((loss, self._optimizer.clip())))
        # Only an fp16 step must be seen before it is applied; otherwise the update is queued first.
        overflowed = scale is not None and not all(map(math.isfinite, measured()))
        if not overflowed:
            self._optimizer.update(learning_rate)
        self._state = loss_scale.after_step(self._state, self._spec.precision, overflowed=overflowed)
        loss_value, grad_norm = measured()
        return StepResult(loss_value, grad_norm, overflowed, scale)

    def gradients(self, batch: Batch) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield the gradient of the step's loss for each weight, unclipped; change nothing."""
        self._accumulate(batch)
        yield from self._weights.export(_gradient)
        self._model.zero_grad()

    def token_losses(self, inputs: NDArray[np.int32], labels: NDArray[np.int32]) -> NDArray[np.float32]:
        """Return the (B, T) negative log likelihood of each label, without dropout."""
        hidden = self._evaluate(inputs).flatten(0, 1)
        losses = token_losses(hidden, self._model.head, self._to_device(labels).flatten())
        return losses.view(labels.shape).cpu().numpy()

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens without dropout; (B, K, V) at positions `at` (B, K)."""
        hidden = self._evaluate(tokens)
        if at is not None:
            hidden = hidden.take_along_dim(self._to_device(at)[:, :, None], 1)
        with torch.inference_mode():
            return (hidden @ self._model.head.to(hidden.dtype).t()).float().cpu().numpy()

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

    def export_state(self) -> SessionState:
        """Return the numbers that `import_state` needs to continue."""
        return self._state

    def import_state(self, state: SessionState) -> None:
        """Continue from `state`."""
        self._state = loss_scale.continued(state, self._spec.precision)
        self._optimizer.set_updates(state.updates)

    def close(self) -> None:
        """Free the device."""
        del self._model, self._weights, self._optimizer, self._loss
        if self._device.type != "cpu":
            torch.get_device_module(self._device).empty_cache()

    def _accumulate(self, batch: Batch) -> Tensor:
        """Leave the gradient of the step's loss in the parameters; return the loss, still on the device."""
        self._model.train()
        self._model.zero_grad()
        inputs, mask = self._to_device(batch.inputs), self._to_device(batch.loss_mask)
        labels = self._to_device(np.where(batch.loss_mask, batch.labels, 0))
        scale = self._state.loss_scale or 1.0
        total = torch.zeros((), device=self._device)
        for n in range(len(inputs)):
            if self._random:
                torch.manual_seed(dropout_seed(self._spec.training.seed, batch.step, n))
            loss = self._loss(inputs[n], labels[n], mask[n])
            torch.autograd.backward(loss * (scale / batch.loss_tokens))
            total += loss.detach()
        if scale != 1.0:
            torch._foreach_mul_([p.grad for p in self._model.parameters() if p.grad is not None], 1 / scale)
        return total / batch.loss_tokens

    def _masked_sum(self, inputs: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Return the sum of the unmasked tokens' negative log likelihood; all arguments (B, T)."""
        hidden = self._hidden(inputs).flatten(0, 1)
        return linear_cross_entropy(
            hidden, self._model.head, labels.flatten(), mask.flatten().to(hidden.dtype)
        )

    def _evaluate(self, tokens: NDArray[np.int32]) -> Tensor:
        """Return the final hidden states of (B, T) tokens without dropout and without a graph."""
        self._model.eval()
        with torch.inference_mode():
            return self._hidden(self._to_device(tokens))

    def _hidden(self, tokens: Tensor) -> Tensor:
        """Return the final hidden states (B, T, H) in the compute type."""
        with torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32):
            return self._model(tokens).to(self._dtype)  # type: ignore[no-any-return]

    def _to_device(self, array: NDArray[np.generic]) -> Tensor:
        """Return a copy on the device without waiting for it; integers become int64."""
        copy = torch.tensor(array, dtype=torch.bool if array.dtype == np.bool_ else torch.int64)
        if self._device.type == "cpu":
            return copy
        return copy.pin_memory().to(self._device, non_blocking=True)


def _weight(parameter: nn.Parameter) -> dict[str, Tensor]:
    return {"": parameter}


def _gradient(parameter: nn.Parameter) -> dict[str, Tensor]:
    return {} if parameter.grad is None else {"": parameter.grad}
