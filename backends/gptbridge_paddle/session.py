"""One device's model in Paddle, and its optimizer, behind the protocols of `gptbridge.session`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import paddle
from numpy.typing import NDArray
from paddle import Tensor

from gptbridge.rules.dropout import drops_out
from gptbridge.rules.rows import CachedDecoder
from gptbridge.rules.stepping import Stepper
from gptbridge.session import Device, Kind, Shard
from gptbridge.weights.shards import decay_of_tensors, shards_of
from gptbridge_paddle.cache import Cache
from gptbridge_paddle.loss import linear_cross_entropy, token_losses
from gptbridge_paddle.model import GPT, LAYOUT
from gptbridge_paddle.optimizer import Optimizer
from gptbridge_specs import RunSpec

UPLOADED = 1 << 20  # numbers at a time
_SCALE = re.compile(r"ln_[12f]\.weight$")
COMPUTE = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class PaddleMemory:
    """How Paddle's tensors are reached from the host: a `gptbridge.weights.shards.Memory`."""

    def download(self, tensor: Tensor) -> NDArray[np.float32]:
        """Return the tensor as float32."""
        return _to_host(tensor)

    def upload(self, tensor: Tensor, array: NDArray[np.float32]) -> None:
        """Fill the tensor from a float32 array of its shape, in parts: each is there in fp32 first."""
        rows = max(1, UPLOADED // (array.size // len(array)))
        with paddle.no_grad():
            for start in range(0, len(array), rows):
                part = slice(start, start + rows)
                tensor[part] = paddle.to_tensor(array[part]).astype(tensor.dtype)


class PaddleModel:
    """A `gptbridge.session.LanguageModel`: weights in the type that the model computes in.

    A trainer's are fp32, and lower precision happens in auto_cast regions.
    """

    def __init__(self, spec: RunSpec, device: Device, *, weight_dtype: str | None = None) -> None:
        self._spec = spec
        self._place = device.handle
        self._dtype = COMPUTE[spec.precision.compute]
        layers = range(spec.model.num_layers)
        with _default_dtype(weight_dtype or self._dtype):  # what is built in fp32 and cast is there twice
            self._model = GPT(
                spec.model,
                layers,
                first=True,
                last=True,
                recompute=spec.training.recompute,
                task=spec.task,
            )

    def shards(self, kind: Kind = "weight") -> list[Shard]:
        """Return what this rank holds of each tensor of `kind`."""
        return shards_of(
            self._spec.model,
            LAYOUT,
            self._tensors(kind),
            PaddleMemory(),
            task=self._spec.task,
            trained=kind != "weight",
        )

    def token_losses(
        self, inputs: NDArray[np.int32], labels: NDArray[np.int32], at: NDArray[np.int32] | None = None
    ) -> NDArray[np.float32]:
        """Return the negative log likelihood of each of (B, T) `labels`; of (B, K) at positions `at`."""
        with paddle.no_grad(), self._autocast():
            hidden = self._at(self._evaluate(inputs), at).flatten(0, 1)
            losses = token_losses(hidden, self._model.head, self._to_device(labels).flatten())
        return _to_host(losses).reshape(labels.shape)

    def logits(self, tokens: NDArray[np.int32], at: NDArray[np.int32] | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens; (B, K, V) at positions `at` (B, K)."""
        return self._project(self._at(self._evaluate(tokens), at))

    def decoder(self, rows: int, capacity: int) -> CachedDecoder[Cache]:
        """Return a decoder of `rows` empty rows of at most `capacity` tokens."""
        return CachedDecoder(self._decode, Cache(self._spec.model, rows, capacity, self._dtype))

    def close(self) -> None:
        """Free the device."""
        del self._model
        if not self._place.is_cpu_place():
            paddle.device.cuda.empty_cache()

    def _tensors(self, kind: Kind) -> Mapping[str, Tensor]:
        return dict(self._model.named_parameters()) if kind == "weight" else {}

    def _decode(self, tokens: NDArray[np.int32], cache: Cache) -> NDArray[np.float32]:
        """Return (R, V) logits after the last of the (R, T) `tokens` that `cache` was prepared for."""
        hidden = self._evaluate(tokens, cache)
        return self._project(paddle.take_along_axis(hidden, cache.last.reshape([-1, 1, 1]), 1)[:, 0])

    def _evaluate(self, tokens: NDArray[np.int32], cache: Cache | None = None) -> Tensor:
        """Return the final hidden states of (B, T) tokens without dropout and without a graph."""
        self._model.eval()
        with paddle.no_grad():
            return self._hidden(self._to_device(tokens), cache)

    def _hidden(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Return the final hidden states (B, T, H)."""
        with self._autocast():
            return self._model(tokens, cache.positions if cache else None, cache)

    def _autocast(self) -> Any:
        enabled = self._dtype != "float32"
        return paddle.amp.auto_cast(enable=enabled, dtype=self._dtype if enabled else "float16", level="O1")

    def _at(self, hidden: Tensor, at: NDArray[np.int32] | None) -> Tensor:
        """Return the hidden states (B, K, H) at positions `at` (B, K); all of them for None."""
        return hidden if at is None else paddle.take_along_axis(hidden, self._to_device(at).unsqueeze(2), 1)

    def _project(self, hidden: Tensor) -> NDArray[np.float32]:
        with paddle.no_grad(), self._autocast():
            return _to_host(paddle.matmul(hidden, self._model.head, transpose_y=True))

    def _to_device(self, array: NDArray[np.generic]) -> Tensor:
        return paddle.to_tensor(np.ascontiguousarray(array), place=self._place)


class PaddleTrainer(PaddleModel, Stepper[Tensor]):
    """A `gptbridge.session.Trainer`."""

    def __init__(self, spec: RunSpec, device: Device) -> None:
        PaddleModel.__init__(self, spec, device, weight_dtype="float32")
        Stepper.__init__(self, spec)
        self._random = drops_out(spec.model, spec.task)
        parameters = dict(self._model.named_parameters())
        decays = decay_of_tensors(spec.model, LAYOUT, parameters, spec.optimizer, spec.task)
        self._trained = {name: parameters[name] for name in decays}
        for name, parameter in parameters.items():
            # With a frozen scale, Paddle's layer_norm returns a wrong gradient of its input.
            parameter.stop_gradient = name not in decays and not _SCALE.search(name)
        self._optimizer = Optimizer(spec.optimizer, self._trained, decays)

    def clear_gradients(self) -> None:
        """Drop every gradient."""
        for parameter in self._model.parameters():
            parameter.clear_gradient(set_to_zero=False)

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
        if self._random:
            paddle.seed(seed)  # a generator on CPU takes the low 32 bits of these 63
        loss = self._masked_sum(self._to_device(inputs), self._to_device(labels), self._to_device(mask))
        (loss * factor).backward()
        return loss.detach()

    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient by `factor`."""
        self._optimizer.scale_gradients(factor)

    def clip(self) -> Tensor:
        """Clip the gradients; return their norm before."""
        return self._optimizer.clip()

    def update(self, learning_rate: float, count: int) -> None:
        """Change the weights by their gradients."""
        self._optimizer.update(learning_rate, count)

    def measure(self, *scalars: Tensor) -> Callable[[], list[float]]:
        """Read `scalars` before anything more is queued; return a function that returns them."""
        numbers = [float(scalar) for scalar in scalars]
        return lambda: numbers

    def close(self) -> None:
        """Free the device."""
        del self._optimizer, self._trained
        super().close()

    def _tensors(self, kind: Kind) -> Mapping[str, Tensor]:
        if kind == "gradient":
            return {name: p.grad for name, p in self._trained.items() if p.grad is not None}
        return super()._tensors(kind) if kind == "weight" else self._optimizer.moments(kind)

    def _masked_sum(self, inputs: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
        """Return the sum of the unmasked tokens' negative log likelihood; all arguments (B, T)."""
        with self._autocast():
            hidden = self._hidden(inputs).flatten(0, 1)
            return linear_cross_entropy(
                hidden, self._model.head, labels.flatten(), mask.flatten().astype("float32")
            )


@contextmanager
def _default_dtype(dtype: str) -> Iterator[None]:
    """Give layers that are built meanwhile parameters of `dtype`."""
    before = paddle.get_default_dtype()
    paddle.set_default_dtype(dtype)
    try:
        yield
    finally:
        paddle.set_default_dtype(before)


def _to_host(tensor: Tensor) -> NDArray[np.float32]:
    array = tensor.numpy()
    # NumPy has no bfloat16: Paddle gives the upper halves of fp32 as uint16
    wide = (array.astype(np.uint32) << 16).view(np.float32) if array.dtype == np.uint16 else array
    return np.asarray(wide, np.float32)
