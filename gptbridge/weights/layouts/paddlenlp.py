"""PaddleNLP GPT: linear weights (in, out), q, k and v apart, as the canonical weights are.

Names as PaddleNLP 2.5 writes them: GPTForPretraining has no head of its own, GPTLMHeadModel keeps
`lm_head.decoder_weight`, a bare GPTModel has no `gpt.`.
"""

from __future__ import annotations

from gptbridge.weights.layouts.rules import HEADS, Layout, Table, rules

_APART: Table = {
    **{f"attn.{x}.weight": (f"self_attn.{x}_proj.weight", f"i ({heads})") for x, heads in HEADS.items()},
    **{f"attn.{x}.bias": (f"self_attn.{x}_proj.bias", f"({heads})") for x, heads in HEADS.items()},
}


def block(qkv: Table = _APART) -> Table:
    """Return the weights of a layer; `qkv` says where q, k and v are."""
    return {
        "ln_1.weight": ("norm1.weight", "i"),
        "ln_1.bias": ("norm1.bias", "i"),
        **qkv,
        "attn.c_proj.weight": ("self_attn.out_proj.weight", "(m g d) o"),
        "attn.c_proj.bias": ("self_attn.out_proj.bias", "o"),
        "ln_2.weight": ("norm2.weight", "i"),
        "ln_2.bias": ("norm2.bias", "i"),
        "mlp.c_fc.weight": ("linear1.weight", "i f"),
        "mlp.c_fc.bias": ("linear1.bias", "f"),
        "mlp.c_proj.weight": ("linear2.weight", "f o"),
        "mlp.c_proj.bias": ("linear2.bias", "o"),
    }


def variant(dialect: str, name: str, prefix: str, layer: Table | None = None) -> Layout:
    """Return the layout of one of the model classes."""
    return Layout(
        dialect,
        name,
        rules(
            top={
                "wte.weight": (f"{prefix}embeddings.word_embeddings.weight", "v i"),
                "wpe.weight": (f"{prefix}embeddings.position_embeddings.weight", "t i"),
                "ln_f.weight": (f"{prefix}decoder.norm.weight", "i"),
                "ln_f.bias": (f"{prefix}decoder.norm.bias", "i"),
                "lm_head.weight": ("lm_head.decoder_weight", "v i"),
                "score.weight": ("score.weight", "i c"),
            },
            block=layer or block(),
            blocks=f"{prefix}decoder.layers.{{}}.",
        ),
    )


PADDLE = (variant("paddle", "GPTForPretraining", "gpt."), variant("paddle", "GPTModel", ""))
