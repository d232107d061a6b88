"""One device's model in MindSpore, and its optimizer, behind the protocols of `gptbridge.session`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from gptbridge.rules.rows import CachedDecoder
from gptbridge.rules.stepping import Stepper
from gptbridge.session import Device, Kind, Shard
from gptbridge.weights.shards import decay_of_tensors, shards_of
from gptbridge_mindspore.cache import Cache
from gptbridge_mindspore.dropout import DropoutMasks
from gptbridge_mindspore.loss import add_gradients
from gptbridge_mindspore.model import GPT, LAYOUT, empty_weights
from gptbridge_mindspore.optimizer import Optimizer
from gptbridge_mindspore.shapes import pad, usual_size
from gptbridge_specs import ModelSpec, RunSpec

COMPUTE = {"fp32": ms.float32, "bf16": ms.bfloat16, "fp16": ms.float16}


@cache
def compiled_model(model: ModelSpec, granularity: str, compute: str) -> GPT:
    """Return the model, which holds no weights: sessions of one spec share what is compiled."""
    return GPT(model, granularity, COMPUTE[compute])


class MindSporeMemory:
    """How MindSpore's tensors are reached from the host: a `gptbridge.weights.shards.Memory`."""

    def download(self, tensor: Tensor) -> NDArray[np.float32]:
        """Return a copy of the tensor."""
        return np.array(tensor.asnumpy(), np.float32)

    def upload(self, tensor: Tensor, array: NDArray[np.float32]) -> None:
        """Fill the tensor from a float32 array of its shape."""
        tensor.assign_value(Tensor(array))


class MindSporeModel:
    """A `gptbridge.session.LanguageModel`. Weights are fp32; lower precision happens in matrix products."""

    def __init__(self, spec: RunSpec, device: Device) -> None:
        self._spec = spec
        self._model = compiled_model(spec.model, spec.training.recompute, spec.precision.compute)
        self._weights = empty_weights(spec.model)

    def shards(self, kind: Kind = "weight") -> list[Shard]:
        """Return what this rank holds of each tensor of `kind`."""
        return shards_of(self._spec.model, LAYOUT, self._tensors(kind), MindSporeMemory())

    def token_losses(
        self, inputs: NDArray[np.int32], labels: NDArray[np.int32], at: NDArray[np.int32] | None = None
    ) -> NDArray[np.float32]:
        """Return the negative log likelihood of each of (B, T) `labels`; of (B, K) at positions `at`."""
        losses = []
        for part, rows in self._rows(inputs, at):
            wanted = labels[part]
            padded = pad(wanted.ravel(), (rows.shape[0],))
            found = self._model.token_losses(self._weights, rows, padded).asnumpy()
            losses.append(found[: wanted.size].reshape(wanted.shape))
        return np.concatenate(losses)

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens; (B, K, V) at positions `at` (B, K)."""
        shape = tokens.shape if at is None else at.shape
        logits = []
        for part, rows in self._rows(tokens, at):
            found = self._model.logits(self._weights, rows).asnumpy()
            samples = len(tokens[part])
            logits.append(found[: samples * shape[1]].reshape(samples, shape[1], -1))
        return np.concatenate(logits)

    def decoder(self, rows: int, capacity: int) -> CachedDecoder[Cache]:
        """Return a decoder of `rows` empty rows of at most `capacity` tokens."""
        return CachedDecoder(self._decode, Cache(rows, capacity))

    def close(self) -> None:
        """Free the device."""
        del self._model, self._weights

    def _decode(self, tokens: NDArray[np.int32], cache: Cache) -> NDArray[np.float32]:
        return self.logits(*cache.add(tokens))[:, 0]

    def _tensors(self, kind: Kind) -> Mapping[str, Tensor]:
        return self._weights if kind == "weight" else {}

    def _rows(
        self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of (B, T) tokens, and the hidden rows at the wanted positions, padded."""
        if at is None:
            at = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        for part, (_, length), hidden in self._hidden(tokens):
            wanted = at[part] + length * np.arange(len(at[part]), dtype=np.int32)[:, None]
            yield part, ops.gather(hidden, Tensor(pad(wanted.ravel(), (usual_size(wanted.size),))), 0)

    def _hidden(self, tokens: NDArray[np.int32]) -> Iterator[tuple[slice, tuple[int, int], Tensor]]:
        """Yield slices of (B, T) tokens, the usual (B, T) they are padded to, and their hidden rows."""
        spec = self._spec
        most = spec.micro_batch_size
        length = usual_size(tokens.shape[1], spec.training.seq_length, spec.model.max_position_embeddings)
        for start in range(0, len(tokens), most):
            part = slice(start, start + most)
            shape = usual_size(len(tokens[part]), most, smallest=1), length
            yield part, shape, self._model.hidden(self._weights, pad(tokens[part], shape))


class MindSporeTrainer(MindSporeModel, Stepper[Tensor]):
    """A `gptbridge.session.Trainer`."""

    def __init__(self, spec: RunSpec, device: Device) -> None:
        MindSporeModel.__init__(self, spec, device)
        Stepper.__init__(self, spec)
        decays = decay_of_tensors(spec.model, LAYOUT, self._weights, spec.optimizer)
        self._optimizer = Optimizer(spec.optimizer, self._weights, decays)
        self._gradients: dict[str, Tensor] = {}

    def clear_gradients(self) -> None:
        """Drop every gradient."""
        self._gradients = {}

    def backward(
        self,
        inputs: NDArray[np.int32],
        labels: NDArray[np.int32],
        mask: NDArray[np.bool_],
        factor: float,
        seed: int,
    ) -> Tensor:
        """Add the gradient of `factor` x the masked sum of losses; return that sum."""
        dropout = DropoutMasks(self._spec.model, seed)
        share = mask * np.float32(factor)
        loss, gradients = self._model.loss_and_gradients(self._weights, inputs, labels, share, dropout)
        add_gradients(self._gradients, gradients)
        return loss / factor

    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient by `factor`."""
        self._gradients = {name: gradient * factor for name, gradient in self._gradients.items()}

    def clip(self) -> Tensor:
        """Clip the gradients; return their norm before."""
        norm, self._gradients = self._optimizer.clip(self._gradients, 1.0)
        return norm

    def update(self, learning_rate: float, count: int) -> None:
        """Change the weights by their gradients."""
        self._optimizer.update(self._gradients, learning_rate, count)

    def measure(self, *scalars: Tensor) -> Callable[[], list[float]]:
        """Return a function that waits for `scalars`."""
        return lambda: [float(scalar) for scalar in scalars]

    def close(self) -> None:
        """Free the device."""
        del self._optimizer
        super().close()

    def _tensors(self, kind: Kind) -> Mapping[str, Tensor]:
        if kind == "gradient":
            return self._gradients
        return super()._tensors(kind) if kind == "weight" else self._optimizer.moments(kind)
