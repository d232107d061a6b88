"""MindFormers 2's GPTModel: Megatron-Core's names, below any others, with MindSpore's norms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from gptbridge.weights.dialects.megatron import core
from gptbridge.weights.formats import WeightFile
from gptbridge.weights.formats.numbered_slices import FORMAT
from gptbridge.weights.layouts.amid_training import amid_training, prefix_of_model
from gptbridge.weights.layouts.rules import Layout

_NORM = "layernorm."
_NAMES = {"weight": "gamma", "bias": "beta"}


def core_layouts(weights: WeightFile, dropped: tuple[str, ...]) -> tuple[Layout, ...]:
    """Return the layouts of a file that may be of a GPTModel; `dropped` are tensors that are no weights."""
    if weights.format != FORMAT and not any(name.endswith(_FINAL) for name in weights.tensors):
        return ()
    prefix = prefix_of_model(_LAYOUTS[0], weights.tensors, weights.path)
    within = f", in {prefix.rstrip('.')}" if prefix else ""
    return tuple(
        amid_training(replace(layout, variant=layout.variant + within, dropped=dropped), prefix)
        for layout in _LAYOUTS
    )


def _layout(names: Mapping[str, str]) -> Layout:
    """Return the layout with `names` for a norm's weight and bias."""

    def native(name: str) -> str:
        module, norm, parameter = name.rpartition("layernorm.")
        return f"{module}{norm}{names[parameter]}" if norm else name

    found = core("", fused_norms=False)
    rules = tuple(replace(rule, native=native(rule.native)) for rule in found.rules)
    return replace(found, dialect="mindspore", variant="GPTModel of MindFormers 2", rules=rules)


_FINAL = "decoder.final_layernorm.gamma"
_LAYOUTS = tuple(  # nn.LayerNorm's names, and those of mint.nn.LayerNorm
    _layout(names) for names in ({"weight": "gamma", "bias": "beta"}, {"weight": "weight", "bias": "bias"})
)
