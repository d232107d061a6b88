"""Hugging Face GPT-2: the canonical weights, q, k and v in one matrix; with or without `transformer.`."""

from __future__ import annotations

from gptbridge.weights.layouts.rules import CONCATENATED, QKV_BIAS, QKV_WEIGHT, Layout, Table, rules, wrapped

_BLOCK: Table = {
    "ln_1.weight": ("ln_1.weight", "i"),
    "ln_1.bias": ("ln_1.bias", "i"),
    QKV_WEIGHT: ("attn.c_attn.weight", f"i {CONCATENATED}"),
    QKV_BIAS: ("attn.c_attn.bias", CONCATENATED),
    "attn.c_proj.weight": ("attn.c_proj.weight", "(m g d) o"),
    "attn.c_proj.bias": ("attn.c_proj.bias", "o"),
    "ln_2.weight": ("ln_2.weight", "i"),
    "ln_2.bias": ("ln_2.bias", "i"),
    "mlp.c_fc.weight": ("mlp.c_fc.weight", "i f"),
    "mlp.c_fc.bias": ("mlp.c_fc.bias", "f"),
    "mlp.c_proj.weight": ("mlp.c_proj.weight", "f o"),
    "mlp.c_proj.bias": ("mlp.c_proj.bias", "o"),
}


def _variant(dialect: str, variant: str, prefix: str) -> Layout:
    return Layout(
        dialect,
        variant,
        rules(
            top={
                "wte.weight": (f"{prefix}wte.weight", "v i"),
                "wpe.weight": (f"{prefix}wpe.weight", "t i"),
                "ln_f.weight": (f"{prefix}ln_f.weight", "i"),
                "ln_f.bias": (f"{prefix}ln_f.bias", "i"),
                "lm_head.weight": ("lm_head.weight", "v i"),  # outside the base model, so never prefixed
                "score.weight": ("score.weight", "c i"),
            },
            block=_BLOCK,
            blocks=f"{prefix}h.{{}}.",
        ),
        dropped=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),  # causal masks of old releases
    )


GPTBRIDGE = (_variant("gptbridge", "canonical", ""),)
_TORCH = (_variant("torch", "GPT2Model", ""), _variant("torch", "GPT2LMHeadModel", "transformer."))
TORCH = (*_TORCH, *(wrapped(layout, "module") for layout in _TORCH))  # as DistributedDataParallel names it
