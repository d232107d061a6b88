"""Hugging Face GPT-2: the canonical weights, q, k and v in one matrix; with or without `transformer.`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptbridge.files import read_json
from gptbridge.weights.configs.rows import Described, Key, Pair, Switch, Token, Words, Written, labels
from gptbridge.weights.configs.table import ConfigTable
from gptbridge.weights.dialects import peft
from gptbridge.weights.dialects.dialect import AdapterFiles, Dialect
from gptbridge.weights.dialects.files import Files, Place
from gptbridge.weights.formats import WeightFile
from gptbridge.weights.layouts.amid_training import STATE, amid_training, prefix_of_model
from gptbridge.weights.layouts.gpt2 import gpt2_rules
from gptbridge.weights.layouts.rules import Layout
from gptbridge.weights.layouts.wrappers import peeled
from gptbridge_specs import ModelSpec

_HEADS = {name: name for name in ("lm_head.weight", "score.weight")}
_OTHER_NAMES = {"lm_head.decoder.weight": "lm_head.weight"}  # DialoGPT's head


def variant(dialect: str, variant: str, prefix: str) -> Layout:
    """Return the layout of one of the model classes; `prefix` is before all but the heads."""
    return Layout(
        dialect,
        variant,
        gpt2_rules(prefix, heads=_HEADS),
        plain_name=lambda name: _OTHER_NAMES.get(name, name),
        dropped=(r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",),  # causal masks of old releases
    )


def _architectures(described: Described) -> list[str]:
    head = "LMHeadModel" if described.num_labels is None else "ForSequenceClassification"
    return [f"GPT2{head}"]


def _class_names(num_labels: int) -> Mapping[str, Any]:
    names = [f"LABEL_{number}" for number in range(num_labels)]
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
    }


CONFIG = ConfigTable(
    files=("config.json",),
    complete=True,  # `absent` is what transformers assumes for a key that the file leaves out
    rows=(
        Written("architectures", _architectures),
        Switch("model_type", "gpt2", written=True),
        Key("vocab_size", ("vocab_size",), absent=50257),
        Key("hidden_size", ("n_embd",), absent=768),
        Key("num_layers", ("n_layer",), absent=12),
        Key("num_attention_heads", ("n_head",), absent=12),
        Pair(  # null for 4 x hidden_size
            "ffn_hidden_size",
            ("n_inner",),
            lambda content, where: content.get("n_inner"),
            lambda described: {"n_inner": described.model.ffn_hidden_size},
        ),
        Key("max_position_embeddings", ("n_positions", "n_ctx"), absent=1024),
        Key("layernorm_epsilon", ("layer_norm_epsilon",)),
        Key("hidden_dropout_prob", ("resid_pdrop",)),
        Key("attention_probs_dropout_prob", ("attn_pdrop",)),
        Key("initializer_range", ("initializer_range",)),
        Key("tie_word_embeddings", ("tie_word_embeddings",)),
        Written("embd_pdrop", lambda described: described.model.hidden_dropout_prob),  # not kept apart
        Words(
            "activation",
            ("activation_function",),
            {
                "gelu_new": "gelu_tanh",
                "gelu_pytorch_tanh": "gelu_tanh",
                "gelu_fast": "gelu_tanh",
                "gelu": "gelu_erf",
                "gelu_python": "gelu_erf",
                "quick_gelu": "quick_gelu",
            },
            absent="gelu_tanh",
        ),
        Switch("scale_attn_weights", True, written=True),
        Switch("scale_attn_by_inverse_layer_idx", False, written=True),
        Switch("add_cross_attention", False, written=True),
        Written("reorder_and_upcast_attn", False),
        Token("bos_token_id", null=True),
        Token("eos_token_id", null=True),
        Written("torch_dtype", lambda described: described.dtype),
        Written("use_cache", True),
        labels("num_labels", writing=_class_names),
        Token("pad_token_id"),
    ),
)
# Beside the weights, as people's own loops save them: an optimizer's state, and numbers such as the loss.
_BESIDE = (STATE, r"\w+")
_LAYOUTS = tuple(
    replace(layout, dropped=(*layout.dropped, *_BESIDE))
    for layout in (variant("torch", "GPT2Model", ""), variant("torch", "GPT2LMHeadModel", "transformer."))
)
# The same below `model`.
_IN_MODEL = tuple(
    replace(amid_training(layout, "model."), variant=f"{layout.variant} in model") for layout in _LAYOUTS
)
_JOINT_IN_MODEL = re.compile(r"model\.(?:transformer\.)?h\.\d+\.attn\.c_attn\.weight")


def in_out_in_model(weights: WeightFile) -> bool | None:
    """Tell whether linear weights below `model` are (in, out), as nanoGPT's are not; None without any."""
    for name, info in weights.tensors.items():
        if len(info.shape) == 2 and _JOINT_IN_MODEL.fullmatch(peeled(name)):
            return info.shape[0] < info.shape[1]
    return None


def _fitting(weights: WeightFile) -> tuple[Layout, ...]:
    """Return none for nanoGPT's file, whose names are the same; BadInput for two models in one."""
    below = in_out_in_model(weights)
    if below:
        prefix_of_model(_LAYOUTS[0], weights.tensors, weights.path)
    return {None: _LAYOUTS, True: _IN_MODEL, False: ()}[below]


DIALECT = Dialect(
    "torch",
    aliases=("huggingface", "hf", "transformers"),
    preference=10,
    layouts=_LAYOUTS,
    fitting=_fitting,
    config=CONFIG,
    files=Files(
        Place("safetensors", "model.safetensors"),
        single=(
            "model.safetensors.index.json",
            "model.safetensors",
            "pytorch_model.bin.index.json",
            "pytorch_model.bin",
        ),
        others=(peft.FOLDER, peft.CONFIG_FILE),
    ),
    adapters=AdapterFiles(peft.read_adapter, peft.write_adapter),
    same_names=("gptbridge",),
)


def config_of(
    model: ModelSpec, *, end_of_text: int | None = None, num_labels: int | None = None
) -> dict[str, Any]:
    """Return the content of the config.json with which GPT2LMHeadModel builds `model`.

    With `num_labels`, GPT2ForSequenceClassification, which reads the class at the last token that is no
    padding: end-of-text, which no text holds.
    """
    names = ("bos_token_id", "eos_token_id", *(["pad_token_id"] if num_labels else []))
    tokens = {} if end_of_text is None else dict.fromkeys(names, end_of_text)
    return CONFIG.write(Described(model, num_labels, tokens))


def read_model(path: Path) -> ModelSpec:
    """Return the model that the config.json at `path` describes; BadInput for any other than a GPT-2."""
    return CONFIG.model(read_json(path), path)
