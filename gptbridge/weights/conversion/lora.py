"""LoRA of q, k and v: low-rank changes that stand beside the weights, kept apart or added to them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BadInput, UsageError
from gptbridge.weights.conversion.canonical_weight import CanonicalWeight
from gptbridge.weights.layouts.axes import Axes, axes
from gptbridge.weights.layouts.boxes import Box, shape_of
from gptbridge.weights.layouts.rules import LORA, LORA_A, LORA_B

QKV = "qkv"
_TARGET = "attn.c_attn.weight"
_DELTA = axes("i p n d")
_LAYER = re.compile(rf"h\.(\d+)\.(?:{'|'.join(map(re.escape, LORA))})")


@dataclass(frozen=True, slots=True)
class Lora:
    """W + alpha / rank * (B A), transposed to W's (in, out), for some of q, k and v of some layers.

    `weights` are canonical: `h.N.attn.c_attn.lora_a` and `lora_b`. `alpha` is None where no file says it.
    """

    rank: int
    alpha: float | None
    weights: Mapping[str, CanonicalWeight]

    @property
    def layers(self) -> list[int]:
        """The layers that are changed, in order."""
        return sorted({int(match.group(1)) for name in self.weights if (match := _LAYER.fullmatch(name))})

    def parts(self, layer: int) -> tuple[int, ...]:
        """Return which of q, k, v (0, 1, 2) of a layer are changed."""
        return parts_of(self.weights[f"h.{layer}.{LORA_A}"])

    @property
    def all_parts(self) -> tuple[int, ...]:
        """Which of q, k, v are changed in any layer."""
        return tuple(sorted({part for layer in self.layers for part in self.parts(layer)}))

    def require_alpha(self) -> float:
        """Return alpha; UsageError that asks for it when no file says it."""
        if self.alpha is None:
            raise UsageError(
                "no file beside the LoRA weights says their alpha",
                hint="Give --lora-alpha A, the lora_alpha that they were trained with",
            )
        if not math.isfinite(self.alpha):
            raise UsageError(f"--lora-alpha {self.alpha}", allowed="a finite number")
        return self.alpha

    def merged(self, weights: Mapping[str, CanonicalWeight]) -> dict[str, CanonicalWeight]:
        """Return the model's weights with the changes added, slab by slab when they are read."""
        scaling = self.require_alpha() / self.rank
        result = dict(weights)
        for layer in self.layers:
            name = f"h.{layer}.{_TARGET}"
            a, b = (self.weights[f"h.{layer}.{factor}"] for factor in LORA)
            result[name] = replace(result[name], delta=LoraDelta(a, b, self.rank, scaling))
        return result


def parts_of(weight: CanonicalWeight) -> tuple[int, ...]:
    """Return which of q, k, v a LoRA factor has."""
    return tuple(sorted({piece.box["p"][0] for piece in weight.pieces}))


@dataclass(frozen=True, slots=True)
class LoraDelta:
    """scaling * (B A) for one layer's q, k and v, computed for a box at a time in float32."""

    a: CanonicalWeight
    b: CanonicalWeight
    rank: int
    scaling: float

    def __call__(self, box: Box, order: Axes) -> NDArray[np.float32]:
        """Return the change of `box`, stored as `order`; zero for what has none."""
        start, stop = box["p"]
        change = np.zeros([box[x][1] - box[x][0] for x in _DELTA.letters], np.float32)
        for part in set(parts_of(self.a)) & set(range(start, stop)):
            here = {**box, "p": (part, part + 1), "r": (0, self.rank)}
            a = self.a.read({x: here[x] for x in "pri"}, axes("i (p r)"), "float32")
            b = self.b.read({x: here[x] for x in "pndr"}, axes("(p r) (n d)"), "float32")
            product = a @ b  # (i, r) (r, n d)
            change[:, part - start] = product.reshape(change.shape[0], *change.shape[2:])
        change *= np.float32(self.scaling)
        return change.transpose(_DELTA.order_of(order)).reshape(shape_of(box, order))


def split_lora(
    weights: Mapping[str, CanonicalWeight], rank: int, alpha: float | None, where: object
) -> tuple[dict[str, CanonicalWeight], Lora | None]:
    """Return the model's own weights, and the LoRA among them; BadInput for half a pair."""
    factors = {name: weight for name, weight in weights.items() if _LAYER.fullmatch(name)}
    if not factors:
        return dict(weights), None
    for name in factors:
        for other in (name.replace(LORA_A, LORA_B), name.replace(LORA_B, LORA_A)):
            if other not in factors or parts_of(factors[other]) != parts_of(factors[name]):
                raise BadInput(f"{name} has no matching {other}", where=where)
    own = {name: weight for name, weight in weights.items() if name not in factors}
    return own, Lora(rank, alpha, factors)
