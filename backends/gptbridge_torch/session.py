"""One rank's model in torch, and its optimizer, behind the protocols of `gptbridge.session`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gptbridge.process.world import World
from gptbridge.rules.dropout import drops_out
from gptbridge.rules.rows import CachedDecoder
from gptbridge.rules.stepping import Labels, Stepper
from gptbridge.session import Batch, Device, Kind, Shard
from gptbridge.weights.architecture import outputs
from gptbridge.weights.held import TIED
from gptbridge.weights.shards import decay_of_tensors, held_tensors, shards_of
from gptbridge_specs import RunSpec
from gptbridge_torch.cache import Cache
from gptbridge_torch.collectives import Cut, all_gather, all_reduce, all_reduce_each
from gptbridge_torch.hardware import read_back
from gptbridge_torch.loss import linear_cross_entropy, token_losses
from gptbridge_torch.model import GPT, LAYOUT
from gptbridge_torch.optimizer import Optimizer
from gptbridge_torch.parallel import Groups
from gptbridge_torch.parts import product
from gptbridge_torch.stages import COMPUTE, allocate, build, held_as, own_parts, read, weights_of

if TYPE_CHECKING:
    from gptbridge_torch.pipeline import Pipeline
    from gptbridge_torch.sharding import Sharding

ALONE = World()
_TYPES = {"b": torch.bool, "f": torch.float32}  # on the device, by NumPy's kind


class TorchMemory:
    """How torch's tensors are reached from the host: a `gptbridge.weights.shards.Memory`."""

    def download(self, tensor: Tensor) -> NDArray[np.float32]:
        """Return the tensor as float32; on a CPU it shares the memory of an fp32 tensor."""
        return tensor.detach().float().cpu().numpy()

    def upload(self, tensor: Tensor, array: NDArray[np.float32]) -> None:
        """Fill the tensor from a float32 array of its shape."""
        tensor.detach().copy_(torch.from_numpy(array))


class TorchModel:
    """A `gptbridge.session.LanguageModel`: weights in the type that the model computes in.

    A trainer's are fp32, and lower precision happens in autocast regions.
    """

    def __init__(
        self,
        spec: RunSpec,
        device: Device,
        world: World = ALONE,
        *,
        weight_dtype: torch.dtype | None = None,
    ) -> None:
        self._spec = spec
        self._place = world.place
        self._groups: Groups = world.handle or Groups()
        self._device: torch.device = device.handle
        self._dtype = COMPUTE[spec.precision.compute]
        self._cut = Cut.of(self._place, self._groups)
        stages = [
            held_as(weight_dtype or self._dtype, stage) for stage in build(spec, self._place, self._cut)
        ]
        self._sharding: Sharding | None = None
        if self._groups.sharding and spec.parallel.sharding_stage:
            from gptbridge_torch.sharding import Sharding  # half a second

            level = spec.parallel.sharding_stage
            self._sharding = Sharding(stages, self._groups.sharding, self._device.type, level)
        self._stages = [allocate(stage, self._device, sharded=self._sharding is not None) for stage in stages]
        self._weights = weights_of(self._stages)

    def shards(self, kind: Kind = "weight") -> list[Shard]:
        """Return what this rank holds of each tensor of `kind`."""
        return shards_of(
            self._spec.model,
            LAYOUT,
            own_parts(self._tensors(kind)),
            TorchMemory(),
            self._place,
            sliced=self._sharding is not None,
            task=self._spec.task,
            trained=kind != "weight",
        )

    def token_losses(
        self, inputs: NDArray[np.int32], labels: Labels, at: NDArray[np.int32] | None = None
    ) -> NDArray[np.float32]:
        """Return the negative log likelihood of each of (B, T) `labels`; of (B, K) at positions `at`."""

        def losses(hidden: Tensor) -> Tensor:
            chosen, wanted = self._at(hidden, at).flatten(0, 1), self._to_device(labels).flatten()
            return token_losses(chosen, self._model.head, wanted, self._model.outputs).view(labels.shape)

        return self._read(inputs, losses, labels.shape)

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens; (B, K, V) at positions `at` (B, K)."""
        shape = (*(tokens if at is None else at).shape, self._spec.model.vocab_size)
        return self._read(tokens, lambda hidden: self._project(self._at(hidden, at)), shape)

    def decoder(self, rows: int, capacity: int) -> CachedDecoder[Cache]:
        """Return a decoder of `rows` empty rows of at most `capacity` tokens."""
        model = self._spec.model
        start, stop = self._cut.part(model.num_attention_heads)
        layers = [int(layer) for stage in self._stages for layer in stage.h]
        cache = Cache(layers, stop - start, model.head_size, rows, capacity, self._dtype, self._device)
        return CachedDecoder(self._decode, cache)

    def close(self) -> None:
        """Free the device."""
        del self._stages, self._weights
        if self._device.type != "cpu":
            torch.get_device_module(self._device).empty_cache()

    def _tensors(self, kind: Kind) -> Mapping[str, Tensor]:
        return self._weights if kind == "weight" else {}

    @property
    def _model(self) -> GPT:
        """The stage that has the head, if one of this rank's has."""
        return self._stages[-1]

    def _decode(self, tokens: NDArray[np.int32], cache: Cache) -> NDArray[np.float32]:
        """Return (R, V) logits after the last of the (R, T) `tokens` that `cache` was prepared for."""

        def logits(hidden: Tensor) -> Tensor:
            return self._project(hidden.take_along_dim(cache.last[:, None, None], 1)[:, 0])

        return self._read(tokens, logits, (len(tokens), self._spec.model.vocab_size), cache)

    def _read(
        self,
        tokens: NDArray[np.int32],
        finish: Callable[[Tensor], Tensor],
        shape: tuple[int, ...],
        cache: Cache | None = None,
    ) -> NDArray[np.float32]:
        """Return what `finish` makes of the final hidden states, without dropout and without a graph."""
        self._set_training(False)
        self._cut.length = None
        given = self._to_device(tokens)
        # What sharded weights are gathered into is used in training too, where no inference tensor may be.
        mode = torch.no_grad() if self._sharding else torch.inference_mode()
        eager = torch.compiler.set_stance("force_eager") if self._spec.training.compile else nullcontext()
        with mode, eager:
            found = read(self._stages, self._place, self._groups, given, cache, finish, shape)
        if self._sharding:
            self._sharding.reshard()
        return found.cpu().numpy()

    def _set_training(self, training: bool) -> None:
        for stage in self._stages:
            if stage.training != training:  # it goes through all modules, which takes a millisecond
                stage.train(training)

    def _at(self, hidden: Tensor, at: NDArray[np.int32] | None) -> Tensor:
        """Return the hidden states (B, K, H) at positions `at` (B, K); all of them for None."""
        return hidden if at is None else hidden.take_along_dim(self._to_device(at)[:, :, None], 1)

    def _project(self, hidden: Tensor) -> Tensor:
        logits = product(hidden, self._model.head.to(hidden.dtype)).float()
        lengths = self._cut.lengths(outputs(self._spec.model, self._spec.task))
        return all_gather(logits, self._groups.tensor, logits.dim() - 1, lengths)

    def _to_device(self, array: NDArray[np.generic]) -> Tensor:
        """Return a copy on the device without waiting for it; integers become int64."""
        copy = torch.tensor(array, dtype=_TYPES.get(array.dtype.kind, torch.int64))
        if self._device.type == "cpu":
            return copy
        return copy.pin_memory().to(self._device, non_blocking=True)


class TorchTrainer(TorchModel, Stepper[Tensor]):
    """A `gptbridge.session.Trainer`."""

    def __init__(self, spec: RunSpec, device: Device, world: World = ALONE) -> None:
        TorchModel.__init__(self, spec, device, world, weight_dtype=torch.float32)
        Stepper.__init__(self, spec)
        self._random = drops_out(spec.model, spec.task)
        decays = decay_of_tensors(spec.model, LAYOUT, self._weights, spec.optimizer, spec.task)
        for name, weight in self._weights.items():
            weight.requires_grad_(name in decays)
        trained = {name: self._weights[name] for name in decays}
        held = held_tensors(
            spec.model, LAYOUT, trained, self._place, sliced=self._sharding is not None, task=spec.task
        )
        self._uncut = {name for name, tensor in held.items() if tensor.native.axes.cut is None}
        owned = {name for name, tensor in held.items() if tensor.owned}
        self._updated = trained
        if self._sharding:  # the optimizer sees this rank's part alone
            self._updated = {name: nn.Parameter(part) for name, part in own_parts(trained).items()}
        self._optimizer = Optimizer(spec.optimizer, self._updated, decays, owned, self._groups)
        self._compiled = spec.training.compile
        if self._compiled:
            torch.use_deterministic_algorithms(True)  # what is compiled too
        self._loss = self._masked_sum
        if self._compiled and (self._sharding or self._groups.pipeline):
            for stage in self._stages:
                for block in stage.h.values():
                    block.compile(dynamic=False)
        elif self._compiled:
            self._loss = torch.compile(self._masked_sum, dynamic=False)
        self._pipeline: Pipeline | None = None
        if self._groups.pipeline:
            from gptbridge_torch.pipeline import Pipeline  # half a second

            self._pipeline = Pipeline(spec.parallel, self._place, self._groups, self._stages, self._sum)

    def clear_gradients(self) -> None:
        """Drop every gradient."""
        for weight in (*self._weights.values(), *self._updated.values()):
            weight.grad = None

    def run(self, batch: Batch, labels: Labels, factor: float) -> Tensor:
        """Add the gradients of all micro-batches; return the sum of this rank's losses."""
        self._set_training(True)
        self._cut.length = batch.inputs.shape[-1] if self._spec.parallel.sequence else None
        if self._sharding:
            factor *= self._place.degree("sharding")  # it leaves the ranks' mean
        self._left = len(batch.inputs)
        if self._pipeline is None:
            return super().run(batch, labels, factor)
        seeds = self._to_device(np.array(batch.dropout_seeds)) if self._random else None
        inputs, wanted, mask = map(self._to_device, (batch.inputs, labels, batch.loss_mask))
        starts = None if batch.starts is None else self._to_device(batch.starts)
        return self._pipeline.run(inputs, wanted, mask, factor, seeds, starts)

    def backward(
        self,
        inputs: NDArray[np.int32],
        labels: Labels,
        mask: NDArray[np.bool_],
        factor: float,
        seed: int,
        starts: NDArray[np.int32] | None = None,
    ) -> Tensor:
        """Add the gradient of `factor` x the masked sum of losses; return that sum, still on the device."""
        self._left -= 1
        if self._sharding:
            self._sharding.before_backward(last=not self._left)
        if self._random and self._compiled:
            torch.manual_seed(seed)
        drawn = seed if self._random and not self._compiled else None
        arrays = (inputs, labels, mask, *(() if starts is None else (starts,)))
        loss = self._loss(drawn, *map(self._to_device, arrays))
        torch.autograd.backward(loss * factor)
        return loss.detach()

    def combine(self, total: Tensor) -> Tensor:
        """Sum the gradients over the ranks that have parts of them; return the sum of their totals."""
        if self._sharding:
            for name, part in own_parts(self._weights).items():
                self._updated[name].data = part
            for name, part in own_parts({n: w.grad for n, w in self._weights.items()}).items():
                self._updated[name].grad = part
        gradients = self._tensors("gradient")
        if self._spec.parallel.sequence:  # the stream's weights have seen this rank's positions alone
            stream = [gradient for name, gradient in gradients.items() if name in self._uncut]
            all_reduce_each(stream, self._groups.tensor)
        if TIED in gradients and self._spec.model.tie_word_embeddings:  # the first stage's and the last one's
            all_reduce(gradients[TIED], self._groups.ends)
        all_reduce_each(gradients.values(), self._groups.data if self._sharding else self._groups.replicas)
        return all_reduce(total, self._groups.losses)

    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient by `factor`."""
        torch._foreach_mul_(list(self._tensors("gradient").values()), factor)

    def clip(self) -> Tensor:
        """Clip the gradients; return their norm before."""
        return self._optimizer.clip()

    def update(self, learning_rate: float, count: int) -> None:
        """Change the weights by their gradients."""
        self._optimizer.update(learning_rate, count)

    def measure(self, *scalars: Tensor) -> Callable[[], list[float]]:
        """Start to read `scalars`; return a function that waits for them."""
        return read_back(torch.stack(scalars))

    def close(self) -> None:
        """Free the device."""
        del self._optimizer, self._loss, self._pipeline
        super().close()

    def _tensors(self, kind: Kind) -> Mapping[str, Tensor]:
        if kind == "gradient":
            return {name: p.grad for name, p in self._updated.items() if p.grad is not None}
        return super()._tensors(kind) if kind == "weight" else self._optimizer.moments(kind)

    def _masked_sum(
        self, seed: int | None, inputs: Tensor, labels: Tensor, mask: Tensor, starts: Tensor | None = None
    ) -> Tensor:
        """Return the sum of the unmasked tokens' negative log likelihood; tensors are (B, T)."""
        return self._sum(self._model(inputs, seed=seed, starts=starts), labels, mask)

    def _sum(self, hidden: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        return linear_cross_entropy(
            hidden.flatten(0, 1),
            self._model.head,
            labels.flatten(),
            mask.flatten().to(hidden.dtype),
            self._model.outputs,
        )
