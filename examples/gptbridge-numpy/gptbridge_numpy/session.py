"""A GPT in NumPy, and its optimizer: each step in float64, what is kept in float32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge import reference
from gptbridge.rules.stepping import Stepper
from gptbridge.session import MOMENTS, Batch, Kind, Shard
from gptbridge.weights.architecture import shapes
from gptbridge.weights.layouts.canonical import CANONICAL
from gptbridge.weights.shards import shards_of
from gptbridge_specs import RunSpec

Arrays = dict[str, NDArray[Any]]
Ids = NDArray[np.int32]


class NumpyMemory:
    """A `gptbridge.weights.shards.Memory`: arrays are on the host already."""

    def download(self, array: NDArray[Any]) -> NDArray[np.float32]:
        """Return the array as float32."""
        return array.astype(np.float32)

    def upload(self, array: NDArray[Any], content: NDArray[np.float32]) -> None:
        """Fill the array."""
        array[...] = content


class NumpyModel:
    """A `gptbridge.session.LanguageModel`. Its weights have their canonical names and shapes."""

    def __init__(self, spec: RunSpec) -> None:
        self._spec = spec
        self._weights = _zeros(spec)

    def shards(self, kind: Kind = "weight") -> list[Shard]:
        """Return what there is of `kind`."""
        return shards_of(self._spec.model, CANONICAL, self._tensors(kind), NumpyMemory())

    def token_losses(self, inputs: Ids, labels: Ids, at: Ids | None = None) -> NDArray[np.float32]:
        """Return the negative log likelihood of each of (B, T) `labels`; of (B, K) at positions `at`."""
        logits = self.logits(inputs, at).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        chosen = np.take_along_axis(logits, labels[..., None], -1)[..., 0]
        losses: NDArray[np.float64] = np.log(np.exp(logits).sum(-1)) - chosen
        return losses.astype(np.float32)

    def logits(self, tokens: Ids, at: Ids | None = None) -> NDArray[np.float32]:
        """Return (B, T, V) logits of (B, T) tokens; (B, K, V) at positions `at` (B, K)."""
        logits = reference.logits(self._spec.model, self._weights, tokens).astype(np.float32)
        return logits if at is None else np.take_along_axis(logits, at[..., None], 1)

    def decoder(self, rows: int, capacity: int) -> NumpyDecoder:
        """Return a decoder of `rows` empty rows of at most `capacity` tokens."""
        return NumpyDecoder(self, rows, capacity)

    def close(self) -> None:
        """Nothing to free: NumPy's memory goes with the model."""

    def _tensors(self, kind: Kind) -> Mapping[str, NDArray[Any]]:
        return self._weights if kind == "weight" else {}


class NumpyDecoder:
    """A `gptbridge.session.Decoder` that keeps the tokens alone and computes each row from its start."""

    def __init__(self, model: NumpyModel, rows: int, capacity: int) -> None:
        self._model = model
        self._capacity = capacity
        self._texts = [np.zeros(0, np.int32)] * rows

    def feed(self, tokens: Ids, lengths: Ids) -> NDArray[np.float32]:
        """Append the first `lengths` (R,) of each row's `tokens` (R, T); return (R, V) logits."""
        texts = [
            np.append(text, row[:length])
            for text, row, length in zip(self._texts, tokens, lengths, strict=True)
        ]
        if max(map(len, texts)) > self._capacity:
            raise ValueError(
                f"a row of {max(map(len, texts))} tokens exceeds the capacity of {self._capacity}"
            )
        self._texts = texts
        return np.stack([self._model.logits(np.atleast_2d(text))[0, -1] for text in texts])

    def keep(self, rows: Ids) -> None:
        """Make row n what row `rows[n]` was; -1 begins an empty row."""
        self._texts = [self._texts[row] if row >= 0 else np.zeros(0, np.int32) for row in rows]


class NumpyTrainer(NumpyModel, Stepper[float]):
    """A `gptbridge.session.Trainer`. The order of a step is the core's; here is what each part does."""

    def __init__(self, spec: RunSpec) -> None:
        NumpyModel.__init__(self, spec)
        Stepper.__init__(self, spec)
        self._gradients: Arrays = {}
        kinds = MOMENTS if spec.optimizer.name == "adamw" else ()
        self._moments = {f"{name}.{kind}": array for kind in kinds for name, array in _zeros(spec).items()}

    def clear_gradients(self) -> None:
        """Make every gradient 0."""
        self._gradients = {name: np.zeros(array.shape) for name, array in self._weights.items()}

    def backward(
        self,
        inputs: Ids,
        labels: Ids,
        mask: NDArray[np.bool_],
        factor: float,
        seed: int,
        starts: Ids | None = None,
    ) -> float:
        """Add the gradient of `factor` x the masked sum of losses; return that sum."""
        batch = Batch(inputs[None], labels[None], mask[None], loss_tokens=1, dropout_seeds=(seed,))
        loss, gradients = reference.loss_and_gradients(self._spec.model, self._weights, batch)
        for name, gradient in gradients.items():
            self._gradients[name] += factor * gradient
        return loss

    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient by `factor`."""
        for gradient in self._gradients.values():
            gradient *= factor

    def clip(self) -> float:
        """Clip the gradients; return their norm before."""
        norm = reference.gradient_norm(self._gradients)
        self._gradients = reference.clip(self._gradients, self._spec.optimizer.clip_grad_norm)
        return norm

    def update(self, learning_rate: float, count: int) -> None:
        """Change the weights by their gradients."""
        model, optimizer = self._spec.model, self._spec.optimizer
        if optimizer.name == "adamw":
            weights, moments = reference.adamw_step(
                model, optimizer, self._weights, self._moments, self._gradients, learning_rate, count
            )
            _store(self._moments, moments)
        else:
            weights = reference.sgd_step(model, optimizer, self._weights, self._gradients, learning_rate)
        _store(self._weights, weights)

    def measure(self, *scalars: float) -> Callable[[], list[float]]:
        """Return a function that returns `scalars`: nothing here computes in the background."""
        return lambda: list(scalars)

    def _tensors(self, kind: Kind) -> Mapping[str, NDArray[Any]]:
        if kind == "gradient":
            return self._gradients
        suffix = f".{kind}"
        own = {name.removesuffix(suffix): a for name, a in self._moments.items() if name.endswith(suffix)}
        return super()._tensors(kind) if kind == "weight" else own


def _zeros(spec: RunSpec) -> Arrays:
    return {name: np.zeros(shape, np.float32) for name, shape in shapes(spec.model).items()}


def _store(own: Arrays, computed: Mapping[str, NDArray[Any]]) -> None:
    for name, array in own.items():
        array[...] = computed[name]
