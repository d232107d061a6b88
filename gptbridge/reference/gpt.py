"""The oracle: GPT's logits, loss and gradients in NumPy, float64 inside.

It is written for reading and for checking backends against, not for speed. It knows no dropout.
Weights are canonical (`gptbridge.weights.canonical`). Shapes: B samples, T tokens, H hidden size,
N heads of D numbers, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.session import Batch
from gptbridge.weights.architecture import parameters
from gptbridge_specs import ModelSpec
from gptbridge_specs.model import Activation

Array = NDArray[np.float64]
Weights = Mapping[str, NDArray[Any]]
Backward = Callable[[Array], Array]  # gradient of the output -> gradient of the input


def logits(model: ModelSpec, weights: Weights, tokens: NDArray[np.int32]) -> Array:
    """Return the (B, T, V) logits of (B, T) tokens."""
    return _Pass(model, weights).forward(tokens)[0]


def token_losses(
    model: ModelSpec, weights: Weights, inputs: NDArray[np.int32], labels: NDArray[np.int32]
) -> Array:
    """Return the (B, T) negative log likelihood of each label."""
    return -_pick(_log_softmax(logits(model, weights, inputs)), labels)


def loss_and_gradients(model: ModelSpec, weights: Weights, batch: Batch) -> tuple[float, dict[str, Array]]:
    """Return the loss of one optimizer step and its gradient for each weight, by canonical name."""
    length = batch.inputs.shape[-1]
    inputs, labels = batch.inputs.reshape(-1, length), batch.labels.reshape(-1, length)
    run = _Pass(model, weights)
    scores, backward = run.forward(inputs)
    log_probs = _log_softmax(scores)
    share = batch.loss_mask.reshape(-1, length) / batch.loss_tokens
    gradient = np.exp(log_probs)
    np.put_along_axis(gradient, labels[..., None], _pick(gradient, labels)[..., None] - 1, -1)
    backward(gradient * share[..., None])
    return float(-(_pick(log_probs, labels) * share).sum()), run.gradients


class _Pass:
    """One forward pass. Each layer returns its output and the function that goes back through it."""

    def __init__(self, model: ModelSpec, weights: Weights) -> None:
        self.gradients: dict[str, Array] = {}
        self._model = model
        self._weights = {p.name: np.asarray(weights[p.name], np.float64) for p in parameters(model)}

    def forward(self, tokens: NDArray[np.int32]) -> tuple[Array, Backward]:
        """Return the (B, T, V) logits."""
        x, embedding_back = self._embedding(tokens)
        backs = [embedding_back]
        for n in range(self._model.num_layers):
            for layer in (self._attention_branch, self._mlp_branch):
                branch, back = layer(f"h.{n}", x)
                x = x + branch
                backs.append(_residual(back))
        x, norm_back = self._layer_norm("ln_f", x)
        scores, head_back = self._head(x)
        return scores, _chain(*backs, norm_back, head_back)

    def _add(self, name: str, gradient: Array) -> None:
        known = self.gradients.get(name)
        self.gradients[name] = gradient if known is None else known + gradient

    def _embedding(self, tokens: NDArray[np.int32]) -> tuple[Array, Backward]:
        words, positions = self._weights["wte.weight"], self._weights["wpe.weight"]
        length = tokens.shape[1]

        def backward(dy: Array) -> Array:
            d_words, d_positions = np.zeros_like(words), np.zeros_like(positions)
            np.add.at(d_words, tokens, dy)
            d_positions[:length] = dy.sum(0)
            self._add("wte.weight", d_words)
            self._add("wpe.weight", d_positions)
            return dy

        return words[tokens] + positions[:length], backward

    def _head(self, x: Array) -> tuple[Array, Backward]:
        name = "wte.weight" if self._model.tie_word_embeddings else "lm_head.weight"
        weight = self._weights[name]

        def backward(dy: Array) -> Array:
            self._add(name, _rows(dy).T @ _rows(x))
            return dy @ weight

        return x @ weight.T, backward

    def _linear(self, name: str, x: Array) -> tuple[Array, Backward]:
        weight = self._weights[f"{name}.weight"]

        def backward(dy: Array) -> Array:
            self._add(f"{name}.weight", _rows(x).T @ _rows(dy))
            self._add(f"{name}.bias", _rows(dy).sum(0))
            return dy @ weight.T

        return x @ weight + self._weights[f"{name}.bias"], backward

    def _layer_norm(self, name: str, x: Array) -> tuple[Array, Backward]:
        weight = self._weights[f"{name}.weight"]
        centred = x - x.mean(-1, keepdims=True)
        inverse: Array = 1 / np.sqrt(
            np.square(centred).mean(-1, keepdims=True) + self._model.layernorm_epsilon
        )
        unit = centred * inverse

        def backward(dy: Array) -> Array:
            self._add(f"{name}.weight", _rows(dy * unit).sum(0))
            self._add(f"{name}.bias", _rows(dy).sum(0))
            d: Array = dy * weight
            d -= d.mean(-1, keepdims=True) + unit * (d * unit).mean(-1, keepdims=True)
            d *= inverse
            return d

        return unit * weight + self._weights[f"{name}.bias"], backward

    def _mlp_branch(self, block: str, x: Array) -> tuple[Array, Backward]:
        normed, norm_back = self._layer_norm(f"{block}.ln_2", x)
        inner, in_back = self._linear(f"{block}.mlp.c_fc", normed)
        active, slope = ACTIVATIONS[self._model.activation](inner)
        y, out_back = self._linear(f"{block}.mlp.c_proj", active)
        return y, _chain(norm_back, in_back, lambda dy: dy * slope, out_back)

    def _attention_branch(self, block: str, x: Array) -> tuple[Array, Backward]:
        normed, norm_back = self._layer_norm(f"{block}.ln_1", x)
        parts = [self._linear(f"{block}.attn.{part}", normed) for part in "qkv"]
        mixed, attention_back = self._attention(np.concatenate([p[0] for p in parts], -1))
        y, out_back = self._linear(f"{block}.attn.c_proj", mixed)

        def in_back(dy: Array) -> Array:
            return sum(back(d) for (_, back), d in zip(parts, np.split(dy, 3, -1), strict=True))

        return y, _chain(norm_back, in_back, attention_back, out_back)

    def _attention(self, qkv: Array) -> tuple[Array, Backward]:
        """Causal attention of (B, T, 3H) projections [q|k|v], each as N heads of D."""
        samples, length, _ = qkv.shape
        heads, size = self._model.num_attention_heads, self._model.head_size
        q, k, v = qkv.reshape(samples, length, 3, heads, size).transpose(2, 0, 3, 1, 4)  # (B, N, T, D) each
        future = np.triu(np.ones((length, length), bool), 1)
        scores = np.where(future, -np.inf, q @ k.swapaxes(-1, -2) / math.sqrt(size))
        probs = np.exp(_log_softmax(scores))

        def backward(dy: Array) -> Array:
            d_mixed = dy.reshape(samples, length, heads, size).swapaxes(1, 2)
            d_probs = d_mixed @ v.swapaxes(-1, -2)
            d_scores = probs * (d_probs - (d_probs * probs).sum(-1, keepdims=True)) / math.sqrt(size)
            parts: Array = np.stack(
                [d_scores @ k, d_scores.swapaxes(-1, -2) @ q, probs.swapaxes(-1, -2) @ d_mixed]
            )
            return parts.transpose(1, 3, 0, 2, 4).reshape(qkv.shape)

        return (probs @ v).swapaxes(1, 2).reshape(samples, length, heads * size), backward


def _gelu_tanh(x: Array) -> tuple[Array, Array]:
    """Hendrycks and Gimpel's approximation: x/2 (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))."""
    scale = math.sqrt(2 / math.pi)
    t = np.tanh(scale * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + t), 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * scale * (1 + 3 * 0.044715 * x * x)


def _gelu_erf(x: Array) -> tuple[Array, Array]:
    """Exact GELU: x times the normal distribution function."""
    # math.erf costs about 0.1 us a number and is exact to the last bit; NumPy has no erf of its own.
    erf: Array = np.frompyfunc(math.erf, 1, 1)(x / math.sqrt(2)).astype(np.float64)
    below = 0.5 * (1 + erf)
    return x * below, below + x * np.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def _quick_gelu(x: Array) -> tuple[Array, Array]:
    """x sigmoid(1.702 x)."""
    gate = 0.5 * (1 + np.tanh(0.851 * x))  # the sigmoid of 1.702 x, without overflow
    return x * gate, gate + 1.702 * x * gate * (1 - gate)


# Each returns the activation and its slope at x.
ACTIVATIONS: Mapping[Activation, Callable[[Array], tuple[Array, Array]]] = {
    "gelu_tanh": _gelu_tanh,
    "gelu_erf": _gelu_erf,
    "quick_gelu": _quick_gelu,
}


def _chain(*backs: Backward) -> Backward:
    """Go back through layers that are listed in the order of the forward pass."""

    def backward(dy: Array) -> Array:
        for back in reversed(backs):
            dy = back(dy)
        return dy

    return backward


def _residual(back: Backward) -> Backward:
    return lambda dy: dy + back(dy)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(-1, keepdims=True)
    normalised: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalised


def _pick(values: Array, labels: NDArray[np.int32]) -> Array:
    """Return the (B, T) entry of each label in (B, T, V) values."""
    picked: Array = np.take_along_axis(values, labels[..., None], -1)[..., 0]
    return picked
