"""One rank's model in torch, and its optimizer, behind the protocols of `gptbridge.session`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gptbridge.process.world import World
from gptbridge.rules.rows import CachedDecoder
from gptbridge.rules.stepping import Stepper
from gptbridge.session import Device, Kind, Shard
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

COMPUTE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
ALONE = World()
# fp16 ends at 65504, which the residual stream of a deep model can pass.
STREAM = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float32}


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
        self._cut = Cut(self._groups.tensor, self._place.index("tensor"), self._place.degree("tensor"))
        layers = range(spec.model.num_layers)
        stream = STREAM[spec.precision.compute]
        with torch.device("meta"):  # draws no initial weights: they are written
            model = GPT(
                spec.model,
                layers,
                first=True,
                last=True,
                recompute=spec.training.recompute,
                stream_dtype=stream,
                cut=self._cut,
            )
        for name, held in held_tensors(
            spec.model, LAYOUT, dict(model.named_parameters()), self._place
        ).items():
            weight = model.get_parameter(name)
            weight.data = weight.new_empty(held.shape)
        self._model = model.to(weight_dtype or self._dtype).to_empty(device=self._device)

    def shards(self, kind: Kind = "weight") -> list[Shard]:
        """Return what this rank holds of each tensor of `kind`."""
        return shards_of(self._spec.model, LAYOUT, self._tensors(kind), TorchMemory(), self._place)

    def token_losses(
        self, inputs: NDArray[np.int32], labels: NDArray[np.int32], at: NDArray[np.int32] | None = None
    ) -> NDArray[np.float32]:
        """Return the negative log likelihood of each of (B, T) `labels`; of (B, K) at positions `at`."""
        hidden = self._at(self._evaluate(inputs), at).flatten(0, 1)
        losses = token_losses(hidden, self._model.head, self._to_device(labels).flatten(), self._model.words)
        return losses.view(labels.shape).cpu().numpy()

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens; (B, K, V) at positions `at` (B, K)."""
        return self._project(self._at(self._evaluate(tokens), at))

    def decoder(self, rows: int, capacity: int) -> CachedDecoder[Cache]:
        """Return a decoder of `rows` empty rows of at most `capacity` tokens."""
        start, stop = self._cut.part(self._spec.model.num_attention_heads)
        cache = Cache(self._spec.model, stop - start, rows, capacity, self._dtype, self._device)
        return CachedDecoder(self._decode, cache)

    def close(self) -> None:
        """Free the device."""
        del self._model
        if self._device.type != "cpu":
            torch.get_device_module(self._device).empty_cache()

    def _tensors(self, kind: Kind) -> Mapping[str, Tensor]:
        return dict(self._model.named_parameters()) if kind == "weight" else {}

    def _decode(self, tokens: NDArray[np.int32], cache: Cache) -> NDArray[np.float32]:
        """Return (R, V) logits after the last of the (R, T) `tokens` that `cache` was prepared for."""
        hidden = self._evaluate(tokens, cache)
        return self._project(hidden.take_along_dim(cache.last[:, None, None], 1)[:, 0])

    def _evaluate(self, tokens: NDArray[np.int32], cache: Cache | None = None) -> Tensor:
        """Return the final hidden states of (B, T) tokens without dropout and without a graph."""
        self._model.eval()
        self._cut.length = None
        with torch.inference_mode():
            return self._hidden(self._to_device(tokens), cache)

    def _hidden(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Return the final hidden states (B, T, H) in the compute type."""
        with self._autocast():
            hidden = self._model(tokens, cache.positions if cache else None, cache)
            return hidden.to(self._dtype)  # type: ignore[no-any-return]

    def _autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self._device.type, self._dtype, enabled=self._dtype != torch.float32)

    def _at(self, hidden: Tensor, at: NDArray[np.int32] | None) -> Tensor:
        """Return the hidden states (B, K, H) at positions `at` (B, K); all of them for None."""
        return hidden if at is None else hidden.take_along_dim(self._to_device(at)[:, :, None], 1)

    @torch.inference_mode()
    def _project(self, hidden: Tensor) -> NDArray[np.float32]:
        logits = product(hidden, self._model.head.to(hidden.dtype)).float()
        lengths = self._cut.lengths(self._spec.model.vocab_size)
        return all_gather(logits, self._groups.tensor, logits.dim() - 1, lengths).cpu().numpy()

    def _to_device(self, array: NDArray[np.generic]) -> Tensor:
        """Return a copy on the device without waiting for it; integers become int64."""
        copy = torch.tensor(array, dtype=torch.bool if array.dtype == np.bool_ else torch.int64)
        if self._device.type == "cpu":
            return copy
        return copy.pin_memory().to(self._device, non_blocking=True)


class TorchTrainer(TorchModel, Stepper[Tensor]):
    """A `gptbridge.session.Trainer`."""

    def __init__(self, spec: RunSpec, device: Device, world: World = ALONE) -> None:
        TorchModel.__init__(self, spec, device, world, weight_dtype=torch.float32)
        Stepper.__init__(self, spec)
        self._random = spec.model.hidden_dropout_prob > 0 or spec.model.attention_probs_dropout_prob > 0
        parameters = dict(self._model.named_parameters())
        decays = decay_of_tensors(spec.model, LAYOUT, parameters, spec.optimizer)
        held = held_tensors(spec.model, LAYOUT, parameters, self._place)
        self._uncut = {name for name in parameters if held[name].native.axes.cut is None}
        owned = {name for name in parameters if held[name].owned}
        self._optimizer = Optimizer(spec.optimizer, parameters, decays, owned, self._groups)
        compiled = spec.training.compile
        self._loss = torch.compile(self._masked_sum, dynamic=False) if compiled else self._masked_sum

    def clear_gradients(self) -> None:
        """Drop every gradient."""
        self._model.zero_grad()

    def backward(
        self,
        inputs: NDArray[np.int32],
        labels: NDArray[np.int32],
        mask: NDArray[np.bool_],
        factor: float,
        seed: int,
    ) -> Tensor:
        """Add the gradient of `factor` x the masked sum of losses; return that sum, still on the device."""
        self._model.train()
        self._cut.length = inputs.shape[1] if self._spec.parallel.sequence else None
        if self._random:
            torch.manual_seed(seed)
        loss = self._loss(self._to_device(inputs), self._to_device(labels), self._to_device(mask))
        torch.autograd.backward(loss * factor)
        return loss.detach()

    def combine(self, total: Tensor) -> Tensor:
        """Sum the gradients over the ranks that have parts of them; return the sum of their totals."""
        if self._spec.parallel.sequence:  # the stream's weights have seen this rank's positions alone
            stream = [g for name, g in self._tensors("gradient").items() if name in self._uncut]
            all_reduce_each(stream, self._groups.tensor)
        all_reduce_each(self._tensors("gradient").values(), self._groups.replicas)
        return all_reduce(total, self._groups.losses)

    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient by `factor`."""
        torch._foreach_mul_([p.grad for p in self._model.parameters() if p.grad is not None], factor)

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
        del self._optimizer, self._loss
        super().close()

    def _tensors(self, kind: Kind) -> Mapping[str, Tensor]:
        if kind == "gradient":
            return {name: p.grad for name, p in self._model.named_parameters() if p.grad is not None}
        return super()._tensors(kind) if kind == "weight" else self._optimizer.moments(kind)

    def _masked_sum(self, inputs: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Return the sum of the unmasked tokens' negative log likelihood; all arguments (B, T)."""
        hidden = self._hidden(inputs).flatten(0, 1)
        return linear_cross_entropy(
            hidden, self._model.head, labels.flatten(), mask.flatten().to(hidden.dtype), self._model.words
        )
