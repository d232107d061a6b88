"""The layout of tensors that are the canonical weights, by name and shape."""

from __future__ import annotations

from collections.abc import Iterable

from gptbridge.weights.architecture import BLOCK, TOP, weight_axes
from gptbridge.weights.layouts.rules import Layout, Table, rules


def _same(names: Iterable[str]) -> Table:
    return {name: (name, str(weight_axes(name))) for name in names}


CANONICAL = Layout(
    "canonical", "memory", rules(top=_same((*TOP, "lm_head.weight")), block=_same(BLOCK), blocks="h.{}.")
)
