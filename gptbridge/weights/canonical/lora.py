"""LoRA: low-rank changes of linear layers that stand beside the weights, kept apart or added to them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gptbridge.errors import BadInput, UsageError
from gptbridge.weights.architecture import (
    LORA_A,
    LORA_B,
    LORA_TARGETS,
    layer_of,
    parameters,
    sizes,
    weight_axes,
)
from gptbridge.weights.canonical.weight import CanonicalWeight
from gptbridge.weights.layouts.arrays import Read
from gptbridge.weights.layouts.axes import Axes
from gptbridge.weights.layouts.boxes import Box, Piece, shape_of, sizes_of
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import TaskSpec

QKV = "qkv"
HEAD = "score.weight"
FACTORS = (LORA_A, LORA_B)


@dataclass(frozen=True, slots=True)
class Lora:
    """W + alpha / rank * (B A), transposed to W's (in, out), for some linear layers of some blocks.

    `weights` are canonical: `h.N.attn.q.lora_a` and `lora_b`. `alpha` is None where no file says it.
    `head` is a classifier's, trained with them.
    """

    rank: int
    alpha: float | None
    weights: Mapping[str, CanonicalWeight]
    head: CanonicalWeight | None = None

    @property
    def all_weights(self) -> dict[str, CanonicalWeight]:
        """The factors, and the head if there is one."""
        return {**self.weights, **({HEAD: self.head} if self.head is not None else {})}

    @property
    def layers(self) -> list[int]:
        """The layers that are changed, in order."""
        return sorted({layer for name in self.weights if (layer := layer_of(name)) is not None})

    @property
    def targets(self) -> list[str]:
        """Which linear layers are changed in any block, as LORA_TARGETS calls them."""
        return [
            target
            for target, layer in LORA_TARGETS.items()
            if any(name.endswith(f".{layer}{LORA_A}") for name in self.weights)
        ]

    @property
    def names(self) -> list[str]:
        """The factors, layer by layer, first those that are multiplied with the input."""
        ordered = (
            f"h.{layer}.{target}{factor}"
            for layer in self.layers
            for factor in FACTORS
            for target in LORA_TARGETS.values()
        )
        return [name for name in ordered if name in self.weights]

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
        for name, a in self.weights.items():
            if name.endswith(LORA_A):
                layer = name.removesuffix(LORA_A)
                b, weight = self.weights[layer + LORA_B], f"{layer}.weight"
                result[weight] = replace(result[weight], delta=LoraDelta(weight, a, b, self.rank, scaling))
        return result


def labels_of(head: CanonicalWeight) -> int:
    """Return how many classes a head has."""
    return max(piece.box["c"][1] for piece in head.pieces)


def trained_lora(model: ModelSpec, task: TaskSpec, read: Read) -> Lora:
    """Return the adapters of a run of `task`, in float32; `read` has slices of their factors."""
    if task.lora is None:
        raise ValueError("the task has no adapters")
    whole = sizes(model, task)
    weights = {
        p.name: CanonicalWeight(p.name, "float32", (_whole_piece(p.name, p.axes, whole, read),))
        for p in parameters(model, task)
        if p.trainable
    }
    head = weights.pop(HEAD, None)
    return Lora(task.lora.rank, task.lora.alpha, weights, head)


def _whole_piece(name: str, order: Axes, whole: Mapping[str, int], read: Read) -> Piece:
    lead, box = order.letters[0], {letter: (0, whole[letter]) for letter in order.letters}
    return Piece(box, order, lead, lambda start, stop: read(name, {**box, lead: (start, stop)}))


@dataclass(frozen=True, slots=True)
class LoraDelta:
    """scaling * (B A) for one linear layer, computed for a box at a time in float32."""

    weight: str
    a: CanonicalWeight
    b: CanonicalWeight
    rank: int
    scaling: float

    def __call__(self, box: Box, order: Axes) -> NDArray[np.float32]:
        """Return the change of `box`, stored as `order`."""
        into, out = weight_axes(self.weight).groups
        here = {**box, "r": (0, self.rank)}
        a = self.a.read({x: here[x] for x in (*into, "r")}, Axes((into, "r")), "float32")
        b = self.b.read({x: here[x] for x in ("r", *out)}, Axes(("r", out)), "float32")
        change = Axes((into, out)).spread(a @ b, sizes_of(box))
        change *= np.float32(self.scaling)
        return change.transpose(Axes((into, out)).order_of(order)).reshape(shape_of(box, order))


def split_lora(
    weights: Mapping[str, CanonicalWeight], rank: int, alpha: float | None, where: object
) -> tuple[dict[str, CanonicalWeight], Lora | None]:
    """Return the model's own weights, and the LoRA among them; BadInput for half a pair."""
    factors = {name: weight for name, weight in weights.items() if name.endswith(FACTORS)}
    if not factors:
        return dict(weights), None
    for name in factors:
        for other in (name.replace(LORA_A, LORA_B), name.replace(LORA_B, LORA_A)):
            if other not in factors:
                raise BadInput(f"{name} has no matching {other}", where=where)
    own = {name: weight for name, weight in weights.items() if name not in factors}
    return own, Lora(rank, alpha, factors)
