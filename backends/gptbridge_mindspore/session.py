"""One rank's model in MindSpore, and its optimizer, behind the protocols of `gptbridge.session`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from gptbridge.process.world import World
from gptbridge.rules.rows import CachedDecoder
from gptbridge.rules.stepping import Stepper
from gptbridge.session import Device, Kind, Shard
from gptbridge.weights.shards import decay_of_tensors, held_tensors, shards_of
from gptbridge_mindspore.cache import Cache, CachedStep
from gptbridge_mindspore.collectives import all_reduce_each
from gptbridge_mindspore.gradients import LossAndGradients
from gptbridge_mindspore.loss import LinearCrossEntropy
from gptbridge_mindspore.model import GPT, LAYOUT
from gptbridge_mindspore.optimizer import Optimizer
from gptbridge_mindspore.parallel import Cut, Groups, cut_of
from gptbridge_mindspore.parts import HIDDEN, KERNELS
from gptbridge_mindspore.shapes import pad, usual_size
from gptbridge_specs import RunSpec

COMPUTE = {"fp32": ms.float32, "bf16": ms.bfloat16, "fp16": ms.float16}
ALONE = World()


class MindSporeMemory:
    """How MindSpore's tensors are reached from the host: a `gptbridge.weights.shards.Memory`.

    The tensors hold `factor` times what they stand for.
    """

    def __init__(self, factor: float = 1.0) -> None:
        self._factor = np.float64(factor)

    def download(self, tensor: Tensor) -> NDArray[np.float32]:
        """Return a copy of the tensor."""
        return np.array(tensor.astype(ms.float32).asnumpy() / self._factor, np.float32)

    def upload(self, tensor: Tensor, array: NDArray[np.float32]) -> None:
        """Fill the tensor from a float32 array of its shape."""
        content = np.ascontiguousarray(array * self._factor, np.float32)
        ops.assign(
            tensor, Tensor(content).astype(tensor.dtype)
        )  # in place: a compiled graph holds on to the memory it was given


class MindSporeModel:
    """A `gptbridge.session.LanguageModel`: its matrices are held in the type of the matrix products."""

    def __init__(self, spec: RunSpec, device: Device, world: World = ALONE) -> None:
        self._spec = spec
        self._place = world.place
        self._groups: Groups = world.handle or Groups()
        self._dtype = COMPUTE[spec.precision.compute]
        self._kernels = KERNELS[device.kind]
        self._cut = cut_of(spec.model, self._place, self._groups)
        self._model = self._built(self._cut)
        self._weights = self._model.weights()
        for weight in self._weights.values():
            if weight.ndim > 1:
                weight.set_dtype(self._held())
        self._loss = loss = LinearCrossEntropy(self._dtype, self._cut, spec.model.vocab_size)
        self._forward, self._token_losses, self._logits = (
            ms.jit(graph) for graph in (self._model, loss.token_losses, loss.logits)
        )
        self._step = ms.jit(CachedStep(spec.model, self._model, loss, self._dtype))

    def _built(self, cut: Cut) -> GPT:
        return GPT(
            self._spec.model,
            range(self._spec.model.num_layers),
            first=True,
            last=True,
            recompute=self._spec.training.recompute,
            dtype=self._dtype,
            kernels=self._kernels,
            cut=cut,
        )

    def shards(self, kind: Kind = "weight") -> list[Shard]:
        """Return what this rank holds of each tensor of `kind`."""
        tensors = self._tensors(kind)
        return shards_of(self._spec.model, LAYOUT, tensors, self._memory(kind), self._place)

    def token_losses(
        self, inputs: NDArray[np.int32], labels: NDArray[np.int32], at: NDArray[np.int32] | None = None
    ) -> NDArray[np.float32]:
        """Return the negative log likelihood of each of (B, T) `labels`; of (B, K) at positions `at`."""
        losses = []
        for part, rows in self._rows(inputs, at):
            wanted = labels[part]
            padded = Tensor(pad(wanted.ravel(), (rows.shape[0],)))
            found = self._token_losses(rows, self._model.head, padded).asnumpy()
            losses.append(found[: wanted.size].reshape(wanted.shape))
        return np.concatenate(losses)

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens; (B, K, V) at positions `at` (B, K)."""
        width = (tokens if at is None else at).shape[1]
        logits = []
        for part, rows in self._rows(tokens, at):
            found = self._logits(rows, self._model.head).asnumpy()
            samples = len(tokens[part])
            logits.append(found[: samples * width].reshape(samples, width, -1))
        return np.concatenate(logits)

    def decoder(self, rows: int, capacity: int) -> CachedDecoder[Cache]:
        """Return a decoder of `rows` empty rows of at most `capacity` tokens."""
        return CachedDecoder(self._decode, Cache(self._spec.model, rows, capacity, len(self._cut.heads)))

    def close(self) -> None:
        """Free the device."""
        del self._model, self._weights, self._forward, self._token_losses, self._logits, self._step

    def _decode(self, tokens: NDArray[np.int32], cache: Cache) -> NDArray[np.float32]:
        """Return (R, V) logits after the last of the (R, T) `tokens` that `cache` was prepared for."""
        ids = Tensor(pad(tokens, cache.shape))
        logits, *held = self._step(
            ids, cache.positions, cache.bias, cache.slots, cache.last, *cache.growing()
        )
        cache.update(held)
        return np.asarray(logits.asnumpy()[: len(tokens)], np.float32)

    def _held(self) -> Any:
        return self._dtype

    def _tensors(self, kind: Kind) -> Mapping[str, Tensor]:
        return self._weights if kind == "weight" else {}

    def _memory(self, kind: Kind) -> MindSporeMemory:
        return MindSporeMemory()

    def _rows(
        self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None
    ) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of (B, T) tokens, and their hidden rows at the positions wanted, both padded."""
        spec, most = self._spec, self._spec.micro_batch_size
        length = usual_size(tokens.shape[1], spec.training.seq_length, spec.model.max_position_embeddings)
        if at is None:
            at = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
        for start in range(0, len(tokens), most):
            part = slice(start, start + most)
            shape = usual_size(len(tokens[part]), most, smallest=1), length
            arrays = (pad(tokens[part], shape), positions(shape), causal_bias(length))
            hidden = self._forward(*map(Tensor, arrays))
            wanted = at[part] + length * np.arange(len(at[part]), dtype=np.int32)[:, None]
            padded = Tensor(pad(wanted.ravel(), (usual_size(wanted.size),)))
            yield part, ops.gather(hidden.reshape(-1, hidden.shape[-1]), padded, 0)


class MindSporeTrainer(MindSporeModel, Stepper[Tensor]):
    """A `gptbridge.session.Trainer`. Its weights are fp32."""

    def __init__(self, spec: RunSpec, device: Device, world: World = ALONE) -> None:
        MindSporeModel.__init__(self, spec, device, world)
        Stepper.__init__(self, spec)
        decays = decay_of_tensors(spec.model, LAYOUT, self._weights, spec.optimizer)
        held = held_tensors(spec.model, LAYOUT, self._weights, self._place)
        owned = [part.owned for part in held.values()]
        self._optimizer = Optimizer(spec.optimizer, self._weights, decays, owned, self._groups)
        self._between = cut_of(spec.model, self._place, self._groups, sequence=spec.parallel.sequence)
        trained = self._built(self._between) if spec.parallel.sequence else self._model
        trained.adopt(self._weights)
        self._dropout = self._kernels.dropout(spec.model, self._between)
        graph = LossAndGradients(spec.model, trained, spec.training.recompute, self._loss, self._dropout)
        self._loss_and_gradients = ms.jit(graph)
        self._uncut = [n for n, part in enumerate(held.values()) if part.native.axes.cut is None]
        self._gradients: list[Tensor] = []  # in the order of the weights

    def clear_gradients(self) -> None:
        """Drop every gradient."""
        self._gradients = []

    def backward(
        self,
        inputs: NDArray[np.int32],
        labels: NDArray[np.int32],
        mask: NDArray[np.bool_],
        factor: float,
        seed: int,
    ) -> Tensor:
        """Add the gradient of `factor` x the masked sum of losses; return that sum."""
        drawn = self._dropout.arguments(seed, inputs.shape)
        share = mask * np.float32(factor)
        placed = positions(inputs.shape)[:, self._between.tokens(inputs.shape[1])]
        arrays = (inputs, np.ascontiguousarray(placed), labels, share, causal_bias(inputs.shape[1]))
        loss, *found = self._loss_and_gradients(*map(Tensor, arrays), *drawn)
        held = self._gradients
        self._gradients = [a + b for a, b in zip(held, found, strict=True)] if held else found
        return loss / factor

    def combine(self, total: Tensor) -> Tensor:
        """Sum the gradients over the ranks that each have a part of them; return the sum of all totals."""
        if self._between.sequence:
            summed = all_reduce_each([self._gradients[n] for n in self._uncut], self._groups.tensor)
            for n, gradient in zip(self._uncut, summed, strict=True):
                self._gradients[n] = gradient
        self._gradients = all_reduce_each(self._gradients, self._groups.replicas)
        return all_reduce_each([total], self._groups.all)[0]

    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient by `factor`."""
        self._gradients = [gradient * factor for gradient in self._gradients]

    def clip(self) -> Tensor:
        """Return the norm of the gradients; `update` clips them."""
        norm, self._factor = self._optimizer.norm(self._gradients)
        return norm

    def update(self, learning_rate: float, count: int) -> None:
        """Change the weights by their gradients."""
        self._optimizer.update(self._gradients, self._factor, learning_rate, count)

    def measure(self, *scalars: Tensor) -> Callable[[], list[float]]:
        """Return a function that waits for `scalars`."""
        return lambda: [float(scalar) for scalar in scalars]

    def close(self) -> None:
        """Free the device."""
        del self._optimizer, self._loss_and_gradients, self._gradients
        super().close()

    def _held(self) -> Any:
        return ms.float32

    def _tensors(self, kind: Kind) -> Mapping[str, Tensor]:
        if kind == "gradient":
            return dict(zip(self._weights, self._gradients, strict=True)) if self._gradients else {}
        return super()._tensors(kind) if kind == "weight" else self._optimizer.moments(kind)

    def _memory(self, kind: Kind) -> MindSporeMemory:
        return MindSporeMemory(self._optimizer.kept.get(kind, 1.0))


def positions(shape: tuple[int, ...]) -> NDArray[np.int32]:
    """Return the (B, T) positions of samples that begin at 0."""
    return np.ascontiguousarray(np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape))


@cache
def causal_bias(length: int) -> NDArray[np.float32]:
    """Return the (T, T) term that hides later positions from the softmax."""
    return np.triu(np.full((length, length), HIDDEN, np.float32), 1)
