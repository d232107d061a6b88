"""Dropout that is a pure function of a seed: of the same bits under recompute and after a resume.

Each place that drops has a stream of its own, keyed by the micro-batch's seed, the kind of the place and
the layer. Where kernels draw from a seed that a graph is given, the device draws (Ascend: written by its
documentation, not run). MindSpore's kernels for a CPU keep a hidden state instead, which no checkpoint
could hold, and a hash of int32 operators takes many times as long as NumPy: there the host draws. Either
way a graph takes a tensor for each place, and the masks are made once, before forward and backward pass.
Shapes: B samples, T tokens, H hidden size, N heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.ops.auto_generate import dropout_do_mask_ext_op, dropout_gen_mask_ext_op
from numpy.typing import NDArray

from gptbridge.weights.layouts.gpt2 import ADAPTED
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import LoraSpec

Masks = tuple[Tensor, ...]
# Of one block: on the probabilities, after attention, after the feed-forward layer; before the adapters of
# attention, and of the feed-forward layer.
BlockMasks = tuple[Masks, ...]

_LEVELS = 2**16
_EMBEDDING, _PROBABILITIES, _ATTENTION, _MLP = range(4)


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor of the model that dropout changes."""

    kind: int
    layer: int
    probability: float
    width: int

    def stream(self, seed: int) -> np.random.SeedSequence:
        """Return where the place's bits in the micro-batch of `seed` come from."""
        return np.random.SeedSequence((seed, self.kind, self.layer))


def places(model: ModelSpec, lora: LoraSpec | None = None) -> list[Place]:
    """Return every place that drops something: that of the embeddings, then each block's."""
    hidden, attention = model.hidden_dropout_prob, model.attention_probs_dropout_prob
    wide = model.hidden_size
    kinds = [(_PROBABILITIES, attention, wide), (_ATTENTION, hidden, wide), (_MLP, hidden, wide)]
    if lora is not None:
        adapted = set(adapted_layers(lora))
        kinds += [
            (kind, lora.dropout, model.ffn_size if name == "mlp.c_proj" else wide)
            for kind, name in enumerate(ADAPTED, start=_MLP + 1)
            if name in adapted
        ]
    blocks = (Place(kind, n, p, width) for n in range(model.num_layers) for kind, p, width in kinds)
    return [place for place in (Place(_EMBEDDING, 0, hidden, wide), *blocks) if place.probability > 0]


def adapted_layers(lora: LoraSpec) -> list[str]:
    """Return the linear layers of a block that have adapters, in the order in which their masks are drawn."""
    return [name for name, parts in ADAPTED.items() if set(parts) & set(lora.targets)]


def masks_of_block(model: ModelSpec, lora: LoraSpec | None = None) -> tuple[int, ...]:
    """Return how many masks each part of BlockMasks has."""
    adapted = adapted_layers(lora) if lora is not None and lora.dropout > 0 else []
    hidden = int(model.hidden_dropout_prob > 0)
    before = (sum(name.startswith(branch) for name in adapted) for branch in ("attn.", "mlp."))
    return (int(model.attention_probs_dropout_prob > 0), hidden, hidden, *before)


class HostDropout(nn.Cell):
    """The host draws, 16 bits a number; a graph is given bool masks, True where a number stays."""

    def __init__(self, model: ModelSpec, lora: LoraSpec | None = None) -> None:
        super().__init__()
        self.heads = model.num_attention_heads
        self.places = places(model, lora)

    def arguments(self, seed: int, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """Yield what a graph takes for each place, for the (B, T) tokens of the micro-batch of `seed`."""
        for place in self.places:
            whole = _shape(place.kind, self.heads, place.width, *shape)
            yield Tensor.from_numpy(_drawn(place, seed, whole))

    def construct(self, tokens: Tensor, *arguments: Tensor) -> Masks:
        """Return the mask of each place."""
        return arguments


class DeviceDropout(nn.Cell):
    """The device draws, from a seed for each place; a mask is one bit a number, in bytes."""

    def __init__(self, model: ModelSpec, lora: LoraSpec | None = None) -> None:
        super().__init__()
        self.places = places(model, lora)
        self.kinds = tuple(place.kind for place in self.places)
        self.probabilities = tuple(place.probability for place in self.places)
        self.widths = tuple(place.width for place in self.places)
        self.heads = model.num_attention_heads
        self.offset = Tensor(0, ms.int64)

    def arguments(self, seed: int, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """Yield what a graph takes for each place, for the (B, T) tokens of the micro-batch of `seed`."""
        for place in self.places:
            yield Tensor(int(place.stream(seed).generate_state(1, np.uint64)[0]) >> 1, ms.int64)

    def construct(self, tokens: Tensor, *arguments: Tensor) -> Masks:
        """Return the mask of each place."""
        masks = ()
        b, t = tokens.shape
        for n in range(len(arguments)):
            shape = _shape(self.kinds[n], self.heads, self.widths[n], b, t)
            drawn = dropout_gen_mask_ext_op(
                shape, self.probabilities[n], arguments[n], self.offset, ms.float32
            )
            masks = (*masks, drawn)  # type: ignore[assignment]
        return masks


class HostDrop(nn.Cell):
    """0 where a mask is False, the rest scaled so that the expectation stays; without a mask, nothing."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.scale = keep_scale(probability)

    def construct(self, x: Tensor, *masks: Tensor) -> Tensor:
        """Return x under the mask that it is called with, if any."""
        for mask in masks:
            x = x * mask.astype(ms.float32) * self.scale
        return x


class DeviceDrop(nn.Cell):
    """The same under a mask of bits."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.masked = _Masked(probability)

    def construct(self, x: Tensor, *masks: Tensor) -> Tensor:
        """Return x under the mask that it is called with, if any."""
        for mask in masks:
            x = self.masked(x, mask)
        return x


class _Masked(nn.Cell):
    """The kernel has no gradient in MindSpore; it is its own."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def construct(self, x: Tensor, mask: Tensor) -> Tensor:
        return dropout_do_mask_ext_op(x, mask, self.probability)

    def bprop(self, x: Tensor, mask: Tensor, out: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
        return dropout_do_mask_ext_op(dy, mask, self.probability), mask


def _shape(kind: int, heads: int, width: int, b: int, t: int) -> tuple[int, int, int]:
    """Return what is dropped of (B, T) tokens: (B N, T, T) probabilities, or (B, T, H)."""
    return (b * heads, t, t) if kind == _PROBABILITIES else (b, t, width)


def _drawn(place: Place, seed: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    count = int(np.prod(shape))
    stream = np.random.SFC64(place.stream(seed))
    bits = stream.random_raw(-(-count // 4)).view(np.uint16)[:count]
    return (bits >= dropped_levels(place.probability)).reshape(shape)


def dropped_levels(probability: float) -> int:
    """Return how many of the 2**16 values of a draw mean that a number is dropped."""
    return min(round(probability * _LEVELS), _LEVELS - 1)


def keep_scale(probability: float) -> float:
    """Return the factor on the numbers that stay, which leaves the expectation what it was."""
    return _LEVELS / (_LEVELS - dropped_levels(probability))
