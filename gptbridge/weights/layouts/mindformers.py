"""MindFormers GPT-2: attention inputs (out, in) and apart, every other linear weight (in, out).

LoRA deltas stand beside the weights they change: mindpet's `mindpet_delta_lora_a` is (rank, in),
`mindpet_delta_lora_b` (out, rank).
"""

from __future__ import annotations

import re

from gptbridge.weights.architecture import LORA_A, LORA_B
from gptbridge.weights.layouts.rules import HEADS, Layout, Table, rules, wrapped

# (name of the layer, the letters of its heads) of q, k and v
_QKV = {part: (f"attention.dense{n}", HEADS[part]) for n, part in enumerate(HEADS, start=1)}


def _qkv() -> Table:
    """Return the rows of q, k and v, and of the LoRA beside them."""
    rows: dict[str | tuple[str, ...], tuple[str, str]] = {}
    for part, (name, heads) in _QKV.items():
        rows[f"attn.{part}.weight"] = (f"{name}.weight", f"({heads}) i")
        rows[f"attn.{part}.bias"] = (f"{name}.bias", f"({heads})")
        rows[f"attn.{part}{LORA_A}"] = (f"{name}.mindpet_delta_lora_a", "r i")
        rows[f"attn.{part}{LORA_B}"] = (f"{name}.mindpet_delta_lora_b", f"({heads}) r")
    return rows


def _variant(name: str, prefix: str) -> Layout:
    """Return the layout of one of the model classes."""
    return Layout(
        "mindspore",
        name,
        rules(
            top={
                "wte.weight": (f"{prefix}embedding.word_embedding.embedding_table", "v i"),
                "wpe.weight": (f"{prefix}embedding.position_embedding.embedding_table", "t i"),
                "ln_f.weight": (f"{prefix}layernorm.gamma", "i"),
                "ln_f.bias": (f"{prefix}layernorm.beta", "i"),
                "score.weight": ("score.weight", "c i"),
            },
            block={
                "ln_1.weight": ("layernorm1.gamma", "i"),
                "ln_1.bias": ("layernorm1.beta", "i"),
                **_qkv(),
                "attn.c_proj.weight": ("attention.projection.weight", "(m g d) o"),
                "attn.c_proj.bias": ("attention.projection.bias", "o"),
                "ln_2.weight": ("layernorm2.gamma", "i"),
                "ln_2.bias": ("layernorm2.beta", "i"),
                "mlp.c_fc.weight": ("output.mapping.weight", "i f"),
                "mlp.c_fc.bias": ("output.mapping.bias", "f"),
                "mlp.c_proj.weight": ("output.projection.weight", "f o"),
                "mlp.c_proj.bias": ("output.projection.bias", "o"),
            },
            blocks=f"{prefix}blocks.{{}}.",
        ),
        dropped=(
            rf"({re.escape(prefix)}blocks\.\d+\.)?attention\.(beta|masked_beta)",  # causal masks
            r"(adam_[mv]|moment[12]|moments|exp_avg(_sq)?|accu_grads)\..*",  # an optimizer's state
            r"[^.]+",  # its counters, rates and scales; weights lie in cells, so their names have dots
        ),
        # The head is the first stage's table once more. Each tensor rank has it whole (vocab_emb_dp).
        repeated_in_last_stage=(("wte.weight", f"{prefix}embedding.word_embedding.embedding_table"),),
        cut="mf",
    )


_MINDSPORE = (_variant("GPT2LMHeadModel", "backbone."), _variant("GPT2Model", ""))
MINDSPORE = (*_MINDSPORE, *(wrapped(layout, "network") for layout in _MINDSPORE))  # a cell around the model
