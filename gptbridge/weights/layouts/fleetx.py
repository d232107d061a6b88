"""PaddleFleetX GPT: PaddleNLP's names, with q, k and v of each head side by side in one matrix."""

from __future__ import annotations

from gptbridge.weights.layouts.paddlenlp import BLOCK, variant

_FUSED = {
    **BLOCK,
    "attn.c_attn.weight": ("self_attn.qkv_proj.weight", "i (n p d)"),
    "attn.c_attn.bias": ("self_attn.qkv_proj.bias", "(n p d)"),
}

FLEETX = (
    variant("fleetx", "fused qkv", "gpt.", _FUSED),
    variant("fleetx", "split qkv", "gpt."),
)
