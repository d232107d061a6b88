"""PaddleNLP GPT: linear weights (in, out), q, k and v apart, as the canonical weights are.

Names as PaddleNLP 2.5 writes them: GPTForPretraining has no head of its own, GPTLMHeadModel keeps
`lm_head.decoder_weight`, a bare GPTModel has no `gpt.`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptbridge.weights.configs.rows import TOKENS, Content, Key, Words, Written, labels
from gptbridge.weights.configs.table import ConfigTable
from gptbridge.weights.dialects.dialect import Contents, Dialect
from gptbridge.weights.dialects.files import Files, Place, Ranked
from gptbridge.weights.formats import WeightFile
from gptbridge.weights.layouts.rules import BY_HEAD, HEADS, Layout, Table, rows, rules

if TYPE_CHECKING:
    from gptbridge.weights.conversion.target import Target, TargetFile

_APART = {f"attn.{part}.*": f"self_attn.{part}_proj.*" for part in HEADS}


def block(qkv: Mapping[str, str] = _APART) -> Table:
    """Return the weights of a layer; `qkv` says where q, k and v are."""
    names = {
        "ln_1.*": "norm1.*",
        **qkv,
        "attn.c_proj.*": "self_attn.out_proj.*",
        "ln_2.*": "norm2.*",
        "mlp.c_fc.*": "linear1.*",
        "mlp.c_proj.*": "linear2.*",
    }
    return rows(names, qkv=BY_HEAD)


def variant(dialect: str, name: str, prefix: str, layer: Table | None = None) -> Layout:
    """Return the layout of one of the model classes."""
    top = {
        "wte.weight": f"{prefix}embeddings.word_embeddings.weight",
        "wpe.weight": f"{prefix}embeddings.position_embeddings.weight",
        "ln_f.*": f"{prefix}decoder.norm.*",
        "lm_head.weight": "lm_head.decoder_weight",
    }
    return Layout(
        dialect,
        name,
        rules(
            top={**rows(top), "score.weight": ("score.weight", "i c")},
            block=layer or block(),
            blocks=f"{prefix}decoder.layers.{{}}.",
        ),
    )


def _flat(content: Content) -> Content:
    """Return the keys of the older form, {"init_args": [{...}], "init_class": ...}, flat."""
    flat = dict(content)
    while isinstance(arguments := flat.pop("init_args", None), list):
        inner = arguments[0] if arguments else None
        if not isinstance(inner, dict):
            break
        flat.update(inner)
    return flat


def _companions(target: Target, files: Sequence[TargetFile]) -> Contents:
    """Return the configuration as PaddleNLP 2.5 and later read it, and as those before do."""
    content = target.config()
    kind = "GPTForPretraining" if target.num_labels is None else "GPTForSequenceClassification"
    older: dict[str, Any] = {"init_args": [{**content, "init_class": "GPTModel"}], "init_class": kind}
    if target.num_labels is not None:
        older["num_classes"] = target.num_labels
    return {"config.json": {"architectures": [kind], **content}, "model_config.json": older}


# "gelu" is the tanh form; the other two have no spelling here, and ours makes the original software
# stop instead of computing something else.
GELU = {"gelu": "gelu_tanh", "gelu_erf": "gelu_erf", "quick_gelu": "quick_gelu"}


def with_bfloat16(file: WeightFile) -> WeightFile:
    """Return the file with bfloat16 for uint16, NumPy's name of it: Paddle itself has no uint16."""
    return file.retyped({"uint16": "bfloat16"})


DIALECT = Dialect(
    "paddle",
    aliases=("paddlenlp",),
    preference=30,
    layouts=(variant("paddle", "GPTForPretraining", "gpt."), variant("paddle", "GPTModel", "")),
    config=ConfigTable(
        files=("model_config.json", "config.json"),
        flat=_flat,
        rows=(
            Written("model_type", "gpt"),
            Written("type_vocab_size", 16),
            Key("vocab_size", ("vocab_size",)),
            Key("hidden_size", ("hidden_size", "n_embd")),
            Key("num_layers", ("num_hidden_layers", "n_layer", "num_layers")),
            Key("num_attention_heads", ("num_attention_heads", "n_head")),
            Key("ffn_hidden_size", ("intermediate_size", "n_inner")),
            Key("max_position_embeddings", ("max_position_embeddings", "n_positions")),
            Key("layernorm_epsilon", ("layernorm_epsilon",), hard_coded=1e-5),
            Key("hidden_dropout_prob", ("hidden_dropout_prob", "resid_pdrop")),
            Key("attention_probs_dropout_prob", ("attention_probs_dropout_prob", "attn_pdrop")),
            Key("initializer_range", ("initializer_range",)),
            Words(
                "activation",
                ("hidden_act", "activation_function"),
                {**GELU, "gelu_new": "gelu_tanh"},
                absent="gelu_tanh",
            ),
            labels("num_labels", "num_classes"),
            *TOKENS,
        ),
    ),
    files=Files(
        Place("pdparams", "model_state.pdparams"),
        single=("model_state.pdparams.index.json", "model_state.pdparams"),
        # A fused qkv in them lies as PaddleFleetX's does, so the place alone tells no dialect.
        ranked=(Ranked("model_state.tp{tensor:02}[_pp{pipeline:02}].pdparams", tells_dialect=False),),
    ),
    companions=_companions,
    seen=with_bfloat16,
    same_names=("fleetx",),  # its qkv apart
)
