"""Hugging Face GPT-2: the canonical layout, with or without the prefix `transformer.`."""

from __future__ import annotations

from gptbridge.weights.layouts.rules import CANONICAL_AXES, LORA, Layout, rules, wrapped

_HEADS = ("lm_head.weight", "score.weight")  # outside the base model, so never prefixed
_TOP = ("wte.weight", "wpe.weight", "ln_f.weight", "ln_f.bias")


def _variant(dialect: str, variant: str, prefix: str) -> Layout:
    names = [(name, order) for name, order in CANONICAL_AXES.items() if name not in LORA]
    return Layout(
        dialect,
        variant,
        rules(
            top={
                name: (prefix + name if name in _TOP else name, order)
                for name, order in names
                if name in _TOP + _HEADS
            },
            block={name: (name, order) for name, order in names if name not in _TOP + _HEADS},
            blocks=prefix + "h.{}.",
        ),
        dropped=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),  # causal masks of old releases
    )


GPTBRIDGE = (_variant("gptbridge", "canonical", ""),)
_TORCH = (_variant("torch", "GPT2Model", ""), _variant("torch", "GPT2LMHeadModel", "transformer."))
TORCH = (*_TORCH, *(wrapped(layout, "module") for layout in _TORCH))  # as DistributedDataParallel names it
