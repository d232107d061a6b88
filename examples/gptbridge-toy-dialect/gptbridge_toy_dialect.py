"""The checkpoints of a system that nobody has: safetensors, a YAML file, a file for each rank when split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gptbridge.weights.configs.rows import Content, Described, Key, Pair, Switch, Words, labels
from gptbridge.weights.configs.table import ConfigTable
from gptbridge.weights.dialects.dialect import Dialect
from gptbridge.weights.dialects.files import Files, Place, Ranked
from gptbridge.weights.layouts.rules import QKV_BIAS, QKV_WEIGHT, Layout, rules

# Each weight once: its name here, and its axes as they are stored. Of the letters, i and o are the hidden
# width, (m g d) the heads, f the feed-forward width, v the vocabulary, t the positions, c the classes. q, k
# and v are rows of one matrix, head by head.
_HEADS = "(m (q:g d | k:d | v:d))"
_LAYOUT = Layout(
    "toy",
    "plain",
    rules(
        top={
            "wte.weight": ("tokens.table", "v i"),
            "wpe.weight": ("places.table", "t i"),
            "ln_f.weight": ("last.gain", "i"),
            "ln_f.bias": ("last.shift", "i"),
            "lm_head.weight": ("answer.table", "v i"),
            "score.weight": ("classes.matrix", "i c"),
        },
        block={
            "ln_1.weight": ("first.gain", "i"),
            "ln_1.bias": ("first.shift", "i"),
            QKV_WEIGHT: ("look.matrix", f"{_HEADS} i"),
            QKV_BIAS: ("look.shift", _HEADS),
            "attn.c_proj.weight": ("mix.matrix", "o (m g d)"),
            "attn.c_proj.bias": ("mix.shift", "o"),
            "ln_2.weight": ("second.gain", "i"),
            "ln_2.bias": ("second.shift", "i"),
            "mlp.c_fc.weight": ("up.matrix", "f i"),
            "mlp.c_fc.bias": ("up.shift", "f"),
            "mlp.c_proj.weight": ("down.matrix", "o f"),
            "mlp.c_proj.bias": ("down.shift", "o"),
        },
        blocks="floor.{}.",
    ),
    dropped=(r"floor\.\d+\.look\.mask",),  # a buffer that old files hold
)


def _read_heads(content: Content, where: object) -> int | None:
    """It says the width of a head, not their number."""
    width, size = content.get("width"), content.get("head_size")
    return width // size if isinstance(width, int) and isinstance(size, int) and size > 0 else None


def _write_heads(described: Described) -> Mapping[str, Any]:
    return {"head_size": described.model.head_size}


_RANKS = Ranked("toy-part-{tensor:03}-of-stage-{pipeline:02}.safetensors")
DIALECT = Dialect(
    "toy",
    layouts=(_LAYOUT,),
    config=ConfigTable(
        files=("toy.yaml",),
        section=("model",),
        rows=(
            Key("vocab_size", ("words",)),
            Key("hidden_size", ("width",)),
            Key("num_layers", ("floors",)),
            Pair("num_attention_heads", ("head_size",), _read_heads, _write_heads),
            Key("ffn_hidden_size", ("inner_width",)),
            Key("max_position_embeddings", ("places",)),
            Key("layernorm_epsilon", ("epsilon",), absent=1e-6),
            Words("activation", ("curve",), {"tanh": "gelu_tanh", "erf": "gelu_erf"}, absent="gelu_tanh"),
            Switch("rotary", False),
            labels("classes"),
        ),
        missing=("hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range"),
    ),
    files=Files(
        Place("safetensors", "toy.safetensors", _RANKS.path),
        single=("toy.safetensors",),
        ranked=(_RANKS,),
    ),
)
