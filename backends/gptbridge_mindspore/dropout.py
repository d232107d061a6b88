"""Dropout masks that are a pure function of (seed, step, micro-batch, layer, place).

MindSpore's own dropout keeps a hidden state on CPU, which no checkpoint could hold. Here the host
draws the bits: 16 of them a number, from a stream of their own for each mask, so that a mask can be
drawn again for the backward pass, under recompute, or after a resume, and is the same bit for bit.
Shapes: B samples, T tokens, H hidden size, N heads.
"""

from __future__ import annotations

import numpy as np
from mindspore import Tensor

from gptbridge_specs import ModelSpec

_LEVELS = 2**16
_EMBEDDING, _PROBABILITIES, _ATTENTION, _MLP = range(4)


class DropoutMasks:
    """The masks of one micro-batch: True where a number stays, None where nothing is dropped.

    Without a seed nothing is dropped at all.
    """

    def __init__(self, model: ModelSpec, seed: int | None) -> None:
        self._seed = seed
        self._heads = model.num_attention_heads
        self._width = model.hidden_size
        self._hidden = model.hidden_dropout_prob
        self._attention = model.attention_probs_dropout_prob

    def embedding(self, shape: tuple[int, ...]) -> Tensor | None:
        """Return the (B T, H) mask of the embeddings of (B, T) tokens."""
        b, t = shape
        return self._draw(self._hidden, (b * t, self._width), _EMBEDDING, 0)

    def block(self, layer: int, shape: tuple[int, ...]) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the masks of one block: (B, N, T, T) of the probabilities, (B T, H) of both branches."""
        b, t = shape
        return (
            self._draw(self._attention, (b, self._heads, t, t), _PROBABILITIES, layer),
            self._draw(self._hidden, (b * t, self._width), _ATTENTION, layer),
            self._draw(self._hidden, (b * t, self._width), _MLP, layer),
        )

    def _draw(self, probability: float, shape: tuple[int, ...], place: int, layer: int) -> Tensor | None:
        if probability == 0 or self._seed is None:
            return None
        count = int(np.prod(shape))
        stream = np.random.SFC64(np.random.SeedSequence((self._seed, place, layer)))
        bits = stream.random_raw(-(-count // 4)).view(np.uint16)[:count]
        return Tensor.from_numpy((bits >= dropped_levels(probability)).reshape(shape))


def dropped_levels(probability: float) -> int:
    """Return how many of the 2**16 values of a draw mean that a number is dropped."""
    return min(round(probability * _LEVELS), _LEVELS - 1)


def keep_scale(probability: float) -> float:
    """Return the factor on the numbers that stay, which leaves the expectation what it was."""
    return _LEVELS / (_LEVELS - dropped_levels(probability))
