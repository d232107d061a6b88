"""PaddleFleetX GPT: PaddleNLP's names, with q, k and v of each head side by side in one matrix."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gptbridge.weights.configs.rows import Key, Words, Written, labels
from gptbridge.weights.configs.table import ConfigTable
from gptbridge.weights.dialects.dialect import Contents, Dialect
from gptbridge.weights.dialects.files import Files, Place, Ranked
from gptbridge.weights.dialects.paddlenlp import GELU, block, variant, with_bfloat16
from gptbridge.weights.layouts.rules import Layout, rows, rules

if TYPE_CHECKING:
    from gptbridge.weights.conversion.target import Target, TargetFile

_FUSED = block({"attn.qkv.*": "self_attn.qkv_proj.*"})


def _without_chunk(name: str) -> str:
    """With virtual stages, a part is numbered within its chunk: `4.2.` is part 2 of the chunk from part 4."""
    return re.sub(r"^(\d{1,4})\.(\d{1,4})\.", lambda found: f"{int(found[1]) + int(found[2])}.", name)


_SHARED = {
    "wte.weight": "shared_layers.embed.word_embeddings.weight",
    "wpe.weight": "shared_layers.embed.position_embeddings.weight",
}
# A pipeline stage numbers its parts: 0 the embedding (shared with the head), 1..L the layers, then the norm.
_PIPELINE = Layout(
    "fleetx",
    "pipeline",
    rules(top=rows({**_SHARED, "ln_f.*": "{}.*"}), block=_FUSED, blocks="{}."),
    dropped=(r"\d+\.(embed\.)?(word|position)_embeddings\.weight",),  # a chunk's name for the shared one
    plain_name=_without_chunk,
    first_layer=1,
    staged=True,
    repeated_in_last_stage=tuple(_SHARED.items()),
)


def _companions(target: Target, files: Sequence[TargetFile]) -> Contents:
    content = target.config()
    if target.num_labels is not None:
        content["Model"]["module"] = "GPTFinetuneModule"
    content["Model"]["fuse_attn_qkv"] = target.layout.variant != "split"
    degrees = {"mp_degree": target.split.tensor, "pp_degree": target.split.pipeline}
    return {"model.yaml": {**content, "Distributed": degrees}}


_RANKED = Ranked("mp_{tensor:02}_sharding_00_pp_{pipeline:02}", ("model.pdparams",))
DIALECT = Dialect(
    "fleetx",
    preference=50,
    layouts=(
        replace(variant("fleetx", "fused", "gpt.", _FUSED), staged=False),
        replace(variant("fleetx", "split", "gpt."), staged=False),
        _PIPELINE,
    ),
    config=ConfigTable(
        files=("model.yaml", "config.yaml", "*.yaml"),
        section=("Model",),
        rows=(
            Written("module", "GPTModule"),
            Written("name", "GPT"),
            Written("type_vocab_size", 16),
            Written("scale_qk_by_layer_num", True),
            Key("vocab_size", ("vocab_size",)),
            Key("hidden_size", ("hidden_size", "n_embd")),
            Key("num_layers", ("num_layers",)),
            Key("num_attention_heads", ("num_attention_heads", "n_head")),
            Key("ffn_hidden_size", ("ffn_hidden_size",)),
            Key("max_position_embeddings", ("max_position_embeddings", "n_positions")),
            Key("layernorm_epsilon", ("layernorm_epsilon",), hard_coded=1e-5),
            Key("hidden_dropout_prob", ("hidden_dropout_prob", "resid_pdrop")),
            Key("attention_probs_dropout_prob", ("attention_probs_dropout_prob", "attn_pdrop")),
            Key("initializer_range", ("initializer_range",)),
            Words("activation", ("activation",), GELU, absent="gelu_tanh", hard_coded="gelu_tanh"),
            labels("num_classes"),
        ),
    ),
    files=Files(
        Place("pdparams", "model.pdparams", _RANKED.path), single=("model.pdparams",), ranked=(_RANKED,)
    ),
    companions=_companions,
    padded=True,
    seen=with_bfloat16,
    same_names=("paddle",),  # qkv fused, since PaddleNLP 2.6
)
