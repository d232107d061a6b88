"""PaddleFleetX GPT: PaddleNLP's names, with q, k and v of each head side by side in one matrix."""

from __future__ import annotations

import re

from gptbridge.weights.layouts.paddlenlp import block, variant
from gptbridge.weights.layouts.rules import BY_HEAD, QKV_BIAS, QKV_WEIGHT, Layout, rules

_FUSED = block(
    {
        QKV_WEIGHT: ("self_attn.qkv_proj.weight", f"i {BY_HEAD}"),
        QKV_BIAS: ("self_attn.qkv_proj.bias", BY_HEAD),
    }
)


def _without_chunk(name: str) -> str:
    """With virtual stages, a part is numbered within its chunk: `4.2.` is part 2 of the chunk from part 4."""
    return re.sub(r"^(\d{1,4})\.(\d{1,4})\.", lambda found: f"{int(found[1]) + int(found[2])}.", name)


# A pipeline stage numbers its parts: 0 the embedding (shared with the head), 1..L the layers, then the norm.
_PIPELINE = Layout(
    "fleetx",
    "pipeline",
    rules(
        top={
            "wte.weight": ("shared_layers.embed.word_embeddings.weight", "v i"),
            "wpe.weight": ("shared_layers.embed.position_embeddings.weight", "t i"),
            "ln_f.weight": ("{}.weight", "i"),
            "ln_f.bias": ("{}.bias", "i"),
        },
        block=_FUSED,
        blocks="{}.",
    ),
    dropped=(r"\d+\.(embed\.)?(word|position)_embeddings\.weight",),  # a chunk's name for the shared one
    plain_name=_without_chunk,
    first_layer=1,
    repeated_in_last_stage=(
        ("wte.weight", "shared_layers.embed.word_embeddings.weight"),
        ("wpe.weight", "shared_layers.embed.position_embeddings.weight"),
    ),
)

FLEETX = (
    variant("fleetx", "fused", "gpt.", _FUSED),
    variant("fleetx", "split", "gpt."),
    _PIPELINE,
)
