"""The oracle: GPT's logits, loss and gradients in NumPy, float64 inside.

It is written for reading and for checking backends against, not for speed. It knows no dropout.
Weights are canonical (`gptbridge.weights.architecture`), whole or in the pieces of tensor ranks; how many
heads a piece has is read from its shapes. Shapes: B samples, T tokens, H hidden size, M key/value heads,
G query heads of each, D numbers a head, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.session import Batch
from gptbridge_specs import ModelSpec
from gptbridge_specs.model import Activation

Array = NDArray[np.float64]
Labels = NDArray[Any]  # int32, or the float32 of a regression
Weights = Mapping[str, NDArray[Any]]
Backward = Callable[[Array], Array]  # gradient of the output -> gradient of the input
Layer = tuple[Array, Backward]  # a layer's output, and the function that goes back through it


def logits(model: ModelSpec, weights: Weights, tokens: NDArray[np.int32]) -> Array:
    """Return the (B, T, V) logits of (B, T) tokens."""
    return logits_of_ranks(model, [weights], tokens)


def logits_of_ranks(model: ModelSpec, ranks: Sequence[Weights], tokens: NDArray[np.int32]) -> Array:
    """Return the (B, T, V) logits of (B, T) tokens from the pieces that tensor ranks hold, in their order.

    Each rank computes with its own heads, feed-forward columns and rows of the vocabulary; what they give
    is summed. What no rank holds a part of is taken from the first.
    """
    return _Pass(model, ranks).forward(tokens)[0]


def token_losses(model: ModelSpec, weights: Weights, inputs: NDArray[np.int32], labels: Labels) -> Array:
    """Return the (B, T) negative log likelihood of each label, or squared error of each value."""
    if labels.dtype.kind == "f":
        errors: Array = logits(model, weights, inputs)[..., 0] - labels
        return errors * errors
    return -_pick(_log_softmax(logits(model, weights, inputs)), labels)


def loss_and_gradients(model: ModelSpec, weights: Weights, batch: Batch) -> tuple[float, dict[str, Array]]:
    """Return the loss of one optimizer step and its gradient for each weight, by canonical name."""
    length = batch.inputs.shape[-1]
    inputs, labels = batch.inputs.reshape(-1, length), batch.labels.reshape(-1, length)
    run = _Pass(model, [weights])
    scores, backward = run.forward(inputs, None if batch.starts is None else batch.starts.reshape(-1, length))
    share = batch.loss_mask.reshape(-1, length) / batch.loss_tokens
    if labels.dtype.kind == "f":
        errors = scores[..., 0] - labels
        backward((2 * errors * share)[..., None])
        return float((np.square(errors) * share).sum()), run.first.gradients
    log_probs = _log_softmax(scores)
    gradient = np.exp(log_probs)
    np.put_along_axis(gradient, labels[..., None], _pick(gradient, labels)[..., None] - 1, -1)
    backward(gradient * share[..., None])
    return float(-(_pick(log_probs, labels) * share).sum()), run.first.gradients


class _Pass:
    """One forward pass over the pieces of all ranks. What every rank has whole is the first one's."""

    def __init__(self, model: ModelSpec, ranks: Sequence[Weights]) -> None:
        self._model = model
        self._ranks = [_Piece(model, weights) for weights in ranks]
        self.first = self._ranks[0]

    def forward(self, tokens: NDArray[np.int32], starts: NDArray[np.int32] | None = None) -> Layer:
        """Return the (B, T, V) logits of tokens whose records begin at `starts` (B, T), by default at 0."""
        self._starts = np.zeros_like(tokens) if starts is None else starts
        x, words_back = self._words(tokens)
        x, positions_back = self.first.positions(x, self._starts)
        backs = [words_back, positions_back]
        for n in range(self._model.num_layers):
            for layer in (self._attention_branch, self._mlp_branch):
                branch, back = layer(f"h.{n}", x)
                x = x + branch
                backs.append(_residual(back))
        x, norm_back = self.first.layer_norm("ln_f", x)
        scores, head_back = self._head(x)
        return scores, _chain(*backs, norm_back, head_back)

    def _words(self, tokens: NDArray[np.int32]) -> Layer:
        return _summed(
            piece.words(tokens, first) for piece, first in zip(self._ranks, self._first_rows(), strict=True)
        )

    def _head(self, x: Array) -> Layer:
        """Return the logits of all ranks' rows of the vocabulary, side by side."""
        layers = [piece.head(x) for piece in self._ranks]
        bounds = self._first_rows()[1:]

        def backward(dy: Array) -> Array:
            shares = np.split(dy, bounds, axis=-1)
            return _total(back(share) for (_, back), share in zip(layers, shares, strict=True))

        return np.concatenate([scores for scores, _ in layers], axis=-1), backward

    def _first_rows(self) -> list[int]:
        """Return the first row of the vocabulary that each rank holds."""
        held = [piece.vocabulary for piece in self._ranks]
        return [sum(held[:rank]) for rank in range(len(held))]

    def _attention_branch(self, block: str, x: Array) -> Layer:
        normed, norm_back = self.first.layer_norm(f"{block}.ln_1", x)
        y, attention_back = _summed(
            piece.attention(f"{block}.attn", normed, self._starts) for piece in self._ranks
        )
        y, bias_back = self.first.bias(f"{block}.attn.c_proj", y)
        return y, _chain(norm_back, attention_back, bias_back)

    def _mlp_branch(self, block: str, x: Array) -> Layer:
        normed, norm_back = self.first.layer_norm(f"{block}.ln_2", x)
        y, mlp_back = _summed(piece.mlp(f"{block}.mlp", normed) for piece in self._ranks)
        y, bias_back = self.first.bias(f"{block}.mlp.c_proj", y)
        return y, _chain(norm_back, mlp_back, bias_back)


class _Piece:
    """What one tensor rank computes with its weights; without ranks, all of the model."""

    def __init__(self, model: ModelSpec, weights: Weights) -> None:
        self.gradients: dict[str, Array] = {}
        self._model = model
        self._weights = {name: np.asarray(weights[name], np.float64) for name in weights}
        self._head_name = "wte.weight" if model.tie_word_embeddings else "lm_head.weight"

    @property
    def vocabulary(self) -> int:
        """How many rows of the vocabulary the rank holds."""
        return len(self._weights["wte.weight"])

    def words(self, tokens: NDArray[np.int32], first: int) -> Layer:
        """Return the (B, T, H) embedding of tokens, zeros for those beyond the rank's rows from `first`."""
        table = self._weights["wte.weight"]
        rows = tokens - first
        held = (rows >= 0) & (rows < len(table))

        def backward(dy: Array) -> Array:
            gradient = np.zeros_like(table)
            np.add.at(gradient, rows[held], dy[held])
            self._add("wte.weight", gradient)
            return dy

        return np.where(held[..., None], table[np.where(held, rows, 0)], 0.0), backward

    def positions(self, x: Array, starts: NDArray[np.int32]) -> Layer:
        """Add the embedding of positions, counted from `starts` (B, T), to (B, T, H)."""
        table = self._weights["wpe.weight"]
        places = np.arange(x.shape[1]) - starts

        def backward(dy: Array) -> Array:
            gradient = np.zeros_like(table)
            np.add.at(gradient, places, dy)
            self._add("wpe.weight", gradient)
            return dy

        return x + table[places], backward

    def head(self, x: Array) -> Layer:
        """Return the (B, T, V) logits of the rank's rows of the vocabulary."""
        weight = self._weights[self._head_name]

        def backward(dy: Array) -> Array:
            self._add(self._head_name, _rows(dy).T @ _rows(x))
            return dy @ weight

        return x @ weight.T, backward

    def layer_norm(self, name: str, x: Array) -> Layer:
        """Return LayerNorm of (B, T, H)."""
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

    def mlp(self, name: str, x: Array) -> Layer:
        """Return the feed-forward of (B, T, H) through the rank's columns, without the last bias."""
        inner, in_back = self._linear(f"{name}.c_fc", x)
        active, slope = ACTIVATIONS[self._model.activation](inner)
        y, out_back = self._product(f"{name}.c_proj", active)
        return y, _chain(in_back, lambda dy: dy * slope, out_back)

    def attention(self, name: str, x: Array, starts: NDArray[np.int32]) -> Layer:
        """Return causal attention of (B, T, H) through the rank's heads, without the last bias.

        No token sees what is before its `starts` (B, T).
        """
        q, k, v = (self._linear(f"{name}.{part}", x) for part in "qkv")
        mixed, mixed_back = _attend(q[0], k[0], v[0], self._model.head_size, starts)
        y, out_back = self._product(f"{name}.c_proj", mixed)

        def backward(dy: Array) -> Array:
            gradients = mixed_back(out_back(dy))
            return _total(back(d) for (_, back), d in zip((q, k, v), gradients, strict=True))

        return y, backward

    def bias(self, name: str, x: Array) -> Layer:
        """Add the bias of a layer."""

        def backward(dy: Array) -> Array:
            self._add(f"{name}.bias", _rows(dy).sum(0))
            return dy

        return x + self._weights[f"{name}.bias"], backward

    def _linear(self, name: str, x: Array) -> Layer:
        y, product_back = self._product(name, x)
        y, bias_back = self.bias(name, y)
        return y, _chain(product_back, bias_back)

    def _product(self, name: str, x: Array) -> Layer:
        weight = self._weights[f"{name}.weight"]

        def backward(dy: Array) -> Array:
            self._add(f"{name}.weight", _rows(x).T @ _rows(dy))
            return dy @ weight.T

        return x @ weight, backward

    def _add(self, name: str, gradient: Array) -> None:
        known = self.gradients.get(name)
        self.gradients[name] = gradient if known is None else known + gradient


def _attend(
    q: Array, k: Array, v: Array, size: int, starts: NDArray[np.int32]
) -> tuple[Array, Callable[[Array], tuple[Array, Array, Array]]]:
    """Return causal attention (B, T, M G D) of q (B, T, M G D) to k and v (B, T, M D), D = `size`.

    A token sees those from its `starts` (B, T) on.
    """
    samples, length, width = k.shape
    heads = width // size

    def split(x: Array) -> Array:
        """Return (B, T, M G D) as (B, M, G, T, D)."""
        return x.reshape(samples, length, heads, -1, size).transpose(0, 2, 3, 1, 4)

    def joined(x: Array) -> Array:
        return x.transpose(0, 3, 1, 2, 4).reshape(samples, length, -1)

    queries, keys, values = split(q), split(k), split(v)
    keys_at = np.arange(length)
    hidden = (keys_at > keys_at[:, None]) | (keys_at < starts[..., None])
    scores = np.where(hidden[:, None, None], -np.inf, queries @ keys.swapaxes(-1, -2) / math.sqrt(size))
    probs = np.exp(_log_softmax(scores))

    def backward(dy: Array) -> tuple[Array, Array, Array]:
        d_mixed = split(dy)
        d_probs = d_mixed @ values.swapaxes(-1, -2)
        d_scores = probs * (d_probs - (d_probs * probs).sum(-1, keepdims=True)) / math.sqrt(size)
        d_keys = (d_scores.swapaxes(-1, -2) @ queries).sum(2, keepdims=True)
        d_values = (probs.swapaxes(-1, -2) @ d_mixed).sum(2, keepdims=True)
        return joined(d_scores @ keys), joined(d_keys), joined(d_values)

    return joined(probs @ values), backward


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


def _summed(layers: Iterable[Layer]) -> Layer:
    """Return the sum of layers that have the same input."""
    outputs, backs = zip(*layers, strict=True)
    return _total(outputs), lambda dy: _total(back(dy) for back in backs)


def _total(arrays: Iterable[Array]) -> Array:
    first, *others = arrays
    return sum(others, first)


def _residual(back: Backward) -> Backward:
    return lambda dy: dy + back(dy)


def _rows(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1])


def _log_softmax(x: Array) -> Array:
    shifted = x - x.max(-1, keepdims=True)
    normalised: Array = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return normalised


def _pick(values: Array, labels: NDArray[Any]) -> Array:
    """Return the (B, T) entry of each label in (B, T, V) values."""
    picked: Array = np.take_along_axis(values, labels[..., None], -1)[..., 0]
    return picked
