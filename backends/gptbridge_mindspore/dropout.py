"""Dropout that is a pure function of a seed: of the same bits under recompute and after a resume.

Each site that drops has a stream of its own, keyed by the micro-batch's seed, the kind of the site and
the layer. Where kernels draw from a seed that a graph is given, the device draws (Ascend: written by its
documentation, not run). MindSpore's kernels for a CPU keep a hidden state instead, which no checkpoint
could hold, and a hash of int32 operators takes many times as long as NumPy: there the host draws. Either
way a graph takes a tensor for each site, and the masks are made once, before forward and backward pass.
Shapes: B samples, T tokens, H hidden size, N heads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import mindspore as ms
import numpy as np
from mindspore import Tensor, nn
from mindspore.ops.auto_generate import dropout_do_mask_ext_op, dropout_gen_mask_ext_op
from numpy.typing import NDArray

from gptbridge.weights.layouts.gpt2 import ADAPTED, adapted
from gptbridge_mindspore.parallel import Cut
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import LoraSpec

Masks = tuple[Tensor, ...]
# Of one block: on the probabilities, after attention, after the feed-forward layer; before the adapters of
# attention, and of the feed-forward layer.
BlockMasks = tuple[Masks, ...]

_LEVELS = 2**16
_EMBEDDING, _PROBABILITIES, _ATTENTION, _MLP = range(4)


@dataclass(frozen=True, slots=True)
class Site:
    """A tensor of the model that dropout changes."""

    kind: int
    layer: int
    probability: float
    width: int

    def stream(self, seed: int, *part: int) -> np.random.SeedSequence:
        """Return where the site's bits in the micro-batch of `seed` come from, or those of a part of it."""
        return np.random.SeedSequence((seed, self.kind, self.layer, *part))


def embedding_sites(model: ModelSpec) -> list[Site]:
    """Return the site of the embeddings, if it drops something."""
    return _dropping(Site(_EMBEDDING, 0, model.hidden_dropout_prob, model.hidden_size))


def layer_sites(model: ModelSpec, layer: int, lora: LoraSpec | None = None) -> list[Site]:
    """Return the sites of a layer that drop something: of a block, then those before its adapters."""
    hidden, attention, wide = model.hidden_dropout_prob, model.attention_probs_dropout_prob, model.hidden_size
    kinds = [(_PROBABILITIES, attention, wide), (_ATTENTION, hidden, wide), (_MLP, hidden, wide)]
    if lora is not None:
        kinds += [
            (kind, lora.dropout, model.ffn_size if name == "mlp.c_proj" else wide)
            for kind, name in enumerate(ADAPTED, start=_MLP + 1)
            if name in adapted(lora)
        ]
    return _dropping(*(Site(kind, layer, p, width) for kind, p, width in kinds))


def all_sites(model: ModelSpec, lora: LoraSpec | None = None) -> list[Site]:
    """Return every site that drops something: that of the embeddings, then each layer's."""
    layers = (site for n in range(model.num_layers) for site in layer_sites(model, n, lora))
    return [*embedding_sites(model), *layers]


def _dropping(*sites: Site) -> list[Site]:
    return [site for site in sites if site.probability > 0]


def masks_of_block(model: ModelSpec, lora: LoraSpec | None = None) -> tuple[int, ...]:
    """Return how many masks each part of BlockMasks has."""
    layers = adapted(lora) if lora is not None and lora.dropout > 0 else {}
    hidden = int(model.hidden_dropout_prob > 0)
    before = (sum(name.startswith(branch) for name in layers) for branch in ("attn.", "mlp."))
    return (int(model.attention_probs_dropout_prob > 0), hidden, hidden, *before)


def of_sites(masks: Masks, counts: tuple[int, ...]) -> BlockMasks:
    """Return the masks of a block, the first of `masks`, as `masks_of_block` counts them."""
    parts, start = (), 0
    for count in counts:
        parts = (*parts, masks[start : start + count])  # type: ignore[assignment]
        start = start + count
    return parts


class HostDropout(nn.Cell):
    """The host draws, 16 bits a number; a graph is given bool masks, True where a number stays.

    A rank takes its part of the mask of the whole model: a layout changes no bit.
    """

    def __init__(self, model: ModelSpec, cut: Cut, sites: list[Site]) -> None:
        super().__init__()
        self.heads, self.cut, self.sites = model.num_attention_heads, cut, tuple(sites)

    def arguments(self, seed: int, shape: tuple[int, ...], layer: int = 0) -> Iterator[Tensor]:
        """Yield what a graph takes for each site, `layer` layers on, for (B, T) tokens of a micro-batch."""
        b, t = shape
        more = self.cut.padded(t) - t
        heads = slice(self.cut.heads.start, self.cut.heads.stop)
        for site in self.sites:
            whole = _shape(site.kind, self.heads, site.width, b, t)
            mask = _drawn(replace(site, layer=site.layer + layer), seed, whole)
            if site.kind == _PROBABILITIES:
                mask = mask.reshape(b, -1, t, t)[:, heads].reshape(-1, t, t)
            if more:
                mask = np.pad(mask, ((0, 0), (0, more), (0, more if site.kind == _PROBABILITIES else 0)))
            if site.kind != _PROBABILITIES:
                mask = mask[:, self.cut.tokens(t)]
            yield Tensor.from_numpy(np.ascontiguousarray(mask))

    def construct(self, b: int, t: int, *arguments: Tensor) -> Masks:
        """Return the mask of each site."""
        return arguments


class DeviceDropout(nn.Cell):
    """The device draws, from a seed for each site and part of one; a mask is one bit a number, in bytes."""

    def __init__(self, model: ModelSpec, cut: Cut, sites: list[Site]) -> None:
        super().__init__()
        self.sites, self.cut = tuple(sites), cut
        self.kinds = tuple(site.kind for site in self.sites)
        self.probabilities = tuple(site.probability for site in self.sites)
        self.widths = tuple(site.width for site in self.sites)
        self.heads = len(cut.heads)
        self.ranks = cut.group.size if cut.group is not None and cut.sequence else 1
        self.offset = Tensor(0, ms.int64)

    def arguments(self, seed: int, shape: tuple[int, ...], layer: int = 0) -> Iterator[Tensor]:
        """Yield what a graph takes for each site, `layer` layers on, for (B, T) tokens of a micro-batch."""
        for site in self.sites:
            cut = self.cut.group is not None and (self.cut.sequence or site.kind == _PROBABILITIES)
            part = (self.cut.group.index,) if self.cut.group is not None and cut else ()
            moved = replace(site, layer=site.layer + layer)
            yield Tensor(int(moved.stream(seed, *part).generate_state(1, np.uint64)[0]) >> 1, ms.int64)

    def construct(self, b: int, t: int, *arguments: Tensor) -> Masks:
        """Return the mask of each site."""
        masks = ()
        for n in range(len(arguments)):
            tokens = t if self.kinds[n] == _PROBABILITIES else t // self.ranks
            shape = _shape(self.kinds[n], self.heads, self.widths[n], b, tokens)
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


def _drawn(site: Site, seed: int, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    count = int(np.prod(shape))
    stream = np.random.SFC64(site.stream(seed))
    bits = stream.random_raw(-(-count // 4)).view(np.uint16)[:count]
    return (bits >= dropped_levels(site.probability)).reshape(shape)


def dropped_levels(probability: float) -> int:
    """Return how many of the 2**16 values of a draw mean that a number is dropped."""
    return min(round(probability * _LEVELS), _LEVELS - 1)


def keep_scale(probability: float) -> float:
    """Return the factor on the numbers that stay, which leaves the expectation what it was."""
    return _LEVELS / (_LEVELS - dropped_levels(probability))
