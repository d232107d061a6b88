"""Megatron-LM GPT and ModelScope GPT-3, which grew from it: linear weights (out, in).

The rows of the fused qkv matrix depend on `checkpoint_version`: 0 is (q|k|v, head, place),
1 is (head, place, q|k|v), 2 and 3 are (head, q|k|v, place). Names changed over the years; each
generation is a row of `_GENERATIONS`. Megatron-Core has its own names.
"""

from __future__ import annotations

import re
from itertools import product

from gptbridge.weights.layouts.rules import (
    BY_HEAD,
    CONCATENATED,
    QKV_BIAS,
    QKV_WEIGHT,
    Layout,
    Table,
    rules,
    wrapped,
)

_GELU = ("gelu_tanh", "gelu_erf")  # one switch chooses between them
QKV_ROWS = {0: CONCATENATED, 1: "(m d (q:g | k: | v:))", 2: BY_HEAD, 3: BY_HEAD}
_BUFFERS = (
    r".*\._extra_state",
    r".*\.rotary_emb\.inv_freq",
    r".*word_embeddings_for_head\.weight",  # the last pipeline stage's copy of wte
)
_TRAINING = r"(optimizer|\w+_scheduler|\w*rng_state|rng_tracker_states)(\..*)?"


def _left_out(prefix: str) -> tuple[str, ...]:
    """Return what is no weight: all beside the wrapper of the weights, or training's state where none is."""
    wrapper = prefix.partition(".")[0]
    return (*_BUFFERS, _TRAINING if wrapper == "language_model" else rf"(?!{wrapper}\.).*")


# With virtual stages, a rank has `model0`, `model1`, ... in place of `model`.
_CHUNK = re.compile(r"^model(\d{1,4})\.")


def chunk_of(name: str) -> int:
    """Return the virtual stage of a tensor of a rank; 0 for what is in none."""
    found = _CHUNK.match(name)
    return int(found[1]) if found else 0


def _without_chunk(name: str) -> str:
    return _CHUNK.sub("model.", name)


# (folder of the layers, attention's name, norms' suffix), newest of the classic names first
_GENERATIONS = tuple(
    product(("encoder", "transformer"), ("self_attention", "attention"), ("layernorm", "norm"))
)


def _block(attention: str, norm: str, rows: str) -> Table:
    return {
        "ln_1.weight": (f"input_{norm}.weight", "i"),
        "ln_1.bias": (f"input_{norm}.bias", "i"),
        QKV_WEIGHT: (f"{attention}.query_key_value.weight", f"{rows} i"),
        QKV_BIAS: (f"{attention}.query_key_value.bias", rows),
        "attn.c_proj.weight": (f"{attention}.dense.weight", "o (m g d)"),
        "attn.c_proj.bias": (f"{attention}.dense.bias", "o"),
        "ln_2.weight": (f"post_attention_{norm}.weight", "i"),
        "ln_2.bias": (f"post_attention_{norm}.bias", "i"),
        "mlp.c_fc.weight": ("mlp.dense_h_to_4h.weight", "f i"),
        "mlp.c_fc.bias": ("mlp.dense_h_to_4h.bias", "f"),
        "mlp.c_proj.weight": ("mlp.dense_4h_to_h.weight", "o f"),
        "mlp.c_proj.bias": ("mlp.dense_4h_to_h.bias", "o"),
    }


def _classic(
    dialect: str,
    variant: str,
    prefix: str,
    names: tuple[str, str, str],
    version: int,
) -> Layout:
    folder, attention, norm = names
    return Layout(
        dialect,
        variant,
        rules(
            top={
                "wte.weight": (f"{prefix}embedding.word_embeddings.weight", "v i"),
                "wpe.weight": (f"{prefix}embedding.position_embeddings.weight", "t i"),
                "ln_f.weight": (f"{prefix}{folder}.final_{norm}.weight", "i"),
                "ln_f.bias": (f"{prefix}{folder}.final_{norm}.bias", "i"),
                "lm_head.weight": (f"{prefix}output_layer.weight", "v i"),
            },
            block=_block(attention, norm, QKV_ROWS[version]),
            blocks=f"{prefix}{folder}.layers.{{}}.",
        ),
        dropped=_left_out(prefix),
        plain_name=_without_chunk,
        layers_count_from_stage=True,
        repeated_in_last_stage=(("wte.weight", "model.word_embeddings_for_head.weight"),),
        activations=_GELU,
    )


def _core(prefix: str, fused_norms: bool) -> Layout:
    ln_1 = "self_attention.linear_qkv.layer_norm_" if fused_norms else "input_layernorm."
    ln_2 = "mlp.linear_fc1.layer_norm_" if fused_norms else "pre_mlp_layernorm."
    return Layout(
        "megatron",
        "core-fused-norms" if fused_norms else "core",
        rules(
            top={
                "wte.weight": (f"{prefix}embedding.word_embeddings.weight", "v i"),
                "wpe.weight": (f"{prefix}embedding.position_embeddings.weight", "t i"),
                "ln_f.weight": (f"{prefix}decoder.final_layernorm.weight", "i"),
                "ln_f.bias": (f"{prefix}decoder.final_layernorm.bias", "i"),
                "lm_head.weight": (f"{prefix}output_layer.weight", "v i"),
            },
            block={
                "ln_1.weight": (f"{ln_1}weight", "i"),
                "ln_1.bias": (f"{ln_1}bias", "i"),
                QKV_WEIGHT: ("self_attention.linear_qkv.weight", f"{BY_HEAD} i"),
                QKV_BIAS: ("self_attention.linear_qkv.bias", BY_HEAD),
                "attn.c_proj.weight": ("self_attention.linear_proj.weight", "o (m g d)"),
                "attn.c_proj.bias": ("self_attention.linear_proj.bias", "o"),
                "ln_2.weight": (f"{ln_2}weight", "i"),
                "ln_2.bias": (f"{ln_2}bias", "i"),
                "mlp.c_fc.weight": ("mlp.linear_fc1.weight", "f i"),
                "mlp.c_fc.bias": ("mlp.linear_fc1.bias", "f"),
                "mlp.c_proj.weight": ("mlp.linear_fc2.weight", "o f"),
                "mlp.c_proj.bias": ("mlp.linear_fc2.bias", "o"),
            },
            blocks=f"{prefix}decoder.layers.{{}}.",
        ),
        dropped=_left_out(prefix),
        plain_name=_without_chunk,
        layers_count_from_stage=True,
        repeated_in_last_stage=(("wte.weight", f"{prefix}output_layer.weight"),),
        activations=_GELU,
    )


def _base(variant: str, prefix: str) -> Layout:
    """ModelScope's base and large sizes: one list of q, k and v rows, and no `embedding.`."""
    return Layout(
        "modelscope",
        variant,
        rules(
            top={
                "wte.weight": (f"{prefix}word_embeddings.weight", "v i"),
                "wpe.weight": (f"{prefix}position_embeddings.weight", "t i"),
                "ln_f.weight": (f"{prefix}transformer.final_layernorm.weight", "i"),
                "ln_f.bias": (f"{prefix}transformer.final_layernorm.bias", "i"),
            },
            block=_block("attention", "layernorm", CONCATENATED),
            blocks=f"{prefix}transformer.layers.{{}}.",
        ),
        dropped=_left_out(prefix),
        plain_name=_without_chunk,
        layers_count_from_stage=True,
        activations=("gelu_erf",),
    )


def megatron(checkpoint_version: int) -> tuple[Layout, ...]:
    """Return Megatron's layouts for a checkpoint_version, the one to write first."""
    version = f"version-{checkpoint_version}"
    prefix = "model.language_model."
    newest, *older = _GENERATIONS
    return (
        _classic("megatron", version, prefix, newest, checkpoint_version),
        *(
            _classic("megatron", f"{version} with {', '.join(names)}", prefix, names, checkpoint_version)
            for names in older
        ),
        *(_core("model.", fused) for fused in (False, True)),
    )


def _large(variant: str, prefix: str) -> Layout:
    """ModelScope's 1.3B and up: Megatron's classic names."""
    names = ("encoder", "self_attention", "layernorm")
    return _classic("modelscope", variant, prefix, names, 2)


MODELSCOPE = (
    _large("large", "module.language_model."),
    _large("large without module", "language_model."),
    _large("large in two modules", "module.module.language_model."),
    _base("base", "language_model."),
    _base("base with model", "model.language_model."),
    _base("base in state_dict", "state_dict.language_model."),
    wrapped(_base("base with model", "model.language_model."), "state_dict"),
)
