"""The layout of tensors that are the canonical weights, by name and shape."""

from __future__ import annotations

from gptbridge.weights.architecture import BLOCK, TOP
from gptbridge.weights.layouts.rules import Layout, rows, rules

CANONICAL = Layout(
    "canonical",
    "memory",
    rules(
        top=rows({name: name for name in (*TOP, "lm_head.weight")}),
        block=rows({name: name for name in BLOCK}),
        blocks="h.{}.",
    ),
)
