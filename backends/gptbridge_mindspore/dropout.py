"""Dropout that is a pure function of a seed: of the same bits under recompute and after a resume.

MindSpore's own dropout keeps a hidden state on CPU, which no checkpoint could hold. Here the host
draws the bits, 16 of them a number, from a stream of their own for each mask; a graph takes the masks
as arguments. Shapes: B samples, T tokens, H hidden size, N heads.
"""

from __future__ import annotations

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn

from gptbridge_specs import ModelSpec

Masks = tuple[Tensor, ...]

_LEVELS = 2**16
_EMBEDDING, _PROBABILITIES, _ATTENTION, _MLP = range(4)


class Drop(nn.Cell):
    """0 where a mask is False, the rest scaled so that the expectation stays; without a mask, nothing."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.scale = keep_scale(probability)

    def construct(self, x: Tensor, *masks: Tensor) -> Tensor:
        """Return x under the mask that it is called with, if any."""
        for mask in masks:
            x = x * mask.astype(ms.float32) * self.scale
        return x


class DropoutMasks:
    """Draws the masks of one micro-batch: True where a number stays; none where nothing is dropped."""

    def __init__(self, model: ModelSpec, seed: int) -> None:
        self._seed = seed
        self._layers = model.num_layers
        self._heads = model.num_attention_heads
        self._width = model.hidden_size
        self._hidden = model.hidden_dropout_prob
        self._attention = model.attention_probs_dropout_prob

    def all(self, shape: tuple[int, ...]) -> Masks:
        """Return every mask of (B, T) tokens: that of the embeddings, then each block's."""
        blocks = (mask for n in range(self._layers) for masks in self.block(n, shape) for mask in masks)
        return (*self.embedding(shape), *blocks)

    def embedding(self, shape: tuple[int, ...]) -> Masks:
        """Return the (B, T, H) mask of the embeddings of (B, T) tokens."""
        return self._draw(self._hidden, (*shape, self._width), _EMBEDDING, 0)

    def block(self, layer: int, shape: tuple[int, ...]) -> tuple[Masks, Masks, Masks]:
        """Return the masks of one block: (B N, T, T) of the probabilities, (B, T, H) of both branches."""
        b, t = shape
        return (
            self._draw(self._attention, (b * self._heads, t, t), _PROBABILITIES, layer),
            self._draw(self._hidden, (b, t, self._width), _ATTENTION, layer),
            self._draw(self._hidden, (b, t, self._width), _MLP, layer),
        )

    def _draw(self, probability: float, shape: tuple[int, ...], place: int, layer: int) -> Masks:
        if probability == 0:
            return ()
        count = int(np.prod(shape))
        stream = np.random.SFC64(np.random.SeedSequence((self._seed, place, layer)))
        bits = stream.random_raw(-(-count // 4)).view(np.uint16)[:count]
        return (Tensor.from_numpy((bits >= dropped_levels(probability)).reshape(shape)),)


def dropped_levels(probability: float) -> int:
    """Return how many of the 2**16 values of a draw mean that a number is dropped."""
    return min(round(probability * _LEVELS), _LEVELS - 1)


def keep_scale(probability: float) -> float:
    """Return the factor on the numbers that stay, which leaves the expectation what it was."""
    return _LEVELS / (_LEVELS - dropped_levels(probability))
