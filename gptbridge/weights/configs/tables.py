"""One table a dialect: which key of its configuration holds which field of the ModelSpec."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ConfigTable:
    """How a dialect writes a model down.

    `keys` maps a ModelSpec field to the keys that say it, the one that is written first. `gelu` maps
    the activation's spelling to ours. `fixed` are switches that must have this value, because any
    other means another architecture. `always` is written as it is. `assumed` is what the system takes
    for a field that its file leaves out, where ModelSpec takes something else. `hard_coded` is what its
    software computes whatever the file says: another value is written for the way back, and told.
    """

    keys: Mapping[str, tuple[str, ...]]
    activation_keys: tuple[str, ...] = ()  # those that spell the activation, the one that is written first
    gelu: Mapping[str, str] = field(default_factory=dict)
    default_activation: str = "gelu_tanh"
    fixed: Mapping[str, Any] = field(default_factory=dict)
    always: Mapping[str, Any] = field(default_factory=dict)
    assumed: Mapping[str, Any] = field(default_factory=dict)
    hard_coded: Mapping[str, Any] = field(default_factory=dict)
    section: tuple[str, ...] = ()  # where in the file the model stands
    tokens: bool = False  # special tokens stand beside the sizes
    labels: tuple[str, ...] = ()  # keys of a classifier's number of classes, the one that is written first


# Special tokens, under the same keys in every configuration that has them.
TOKEN_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id")

# PaddleNLP's and FleetX's "gelu" is the tanh form; the other two have no spelling there, and ours
# makes the original software stop instead of computing something else.
_PADDLE_GELU = {"gelu": "gelu_tanh", "gelu_erf": "gelu_erf", "quick_gelu": "quick_gelu"}
_PADDLE_KEYS = {
    "vocab_size": ("vocab_size",),
    "hidden_size": ("hidden_size", "n_embd"),
    "num_layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "num_attention_heads": ("num_attention_heads", "n_head"),
    "ffn_hidden_size": ("intermediate_size", "n_inner"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions"),
    "layernorm_epsilon": ("layernorm_epsilon",),
    "hidden_dropout_prob": ("hidden_dropout_prob", "resid_pdrop"),
    "attention_probs_dropout_prob": ("attention_probs_dropout_prob", "attn_pdrop"),
    "initializer_range": ("initializer_range",),
}
_EPSILON = {"layernorm_epsilon": 1e-5}  # of three systems' code

TABLES: Mapping[str, ConfigTable] = {
    "paddle": ConfigTable(
        keys=_PADDLE_KEYS,
        activation_keys=("hidden_act", "activation_function"),
        gelu={**_PADDLE_GELU, "gelu_new": "gelu_tanh"},
        always={"model_type": "gpt", "type_vocab_size": 16},
        hard_coded=_EPSILON,
        tokens=True,
        labels=("num_labels", "num_classes"),
    ),
    "fleetx": ConfigTable(
        keys={
            **_PADDLE_KEYS,
            "num_layers": ("num_layers",),
            "ffn_hidden_size": ("ffn_hidden_size",),
        },
        activation_keys=("activation",),
        gelu=_PADDLE_GELU,
        hard_coded={**_EPSILON, "activation": "gelu_tanh"},
        always={
            "module": "GPTModule",
            "name": "GPT",
            "type_vocab_size": 16,
            "scale_qk_by_layer_num": True,
        },
        section=("Model",),
        labels=("num_classes",),
    ),
    "mindspore": ConfigTable(
        keys={
            "vocab_size": ("vocab_size",),
            "hidden_size": ("hidden_size", "embedding_size"),
            "num_layers": ("num_layers", "num_hidden_layers"),
            "num_attention_heads": ("num_heads", "num_attention_heads"),
            "max_position_embeddings": ("max_position_embeddings", "seq_length"),
            "layernorm_epsilon": ("layernorm_epsilon",),
            "hidden_dropout_prob": ("hidden_dropout_rate", "hidden_dropout_prob"),
            "attention_probs_dropout_prob": ("attention_dropout_rate", "attention_dropout_prob"),
            "initializer_range": ("initializer_range",),
        },
        activation_keys=("hidden_act",),
        hard_coded=_EPSILON,
        gelu={"gelu": "gelu_tanh", "fast_gelu": "quick_gelu", "gelu_erf": "gelu_erf"},
        always={"type": "GPT2Config"},
        section=("model", "model_config"),
        tokens=True,
        labels=("num_labels",),
    ),
    "modelscope": ConfigTable(
        keys={
            "vocab_size": ("vocab_size",),
            "hidden_size": ("hidden_size",),
            "num_layers": ("num_hidden_layers", "num_layers"),
            "num_attention_heads": ("num_attention_heads",),
            "ffn_hidden_size": ("ffn_hidden_size", "intermediate_size"),
            "max_position_embeddings": ("max_position_embeddings",),
            "layernorm_epsilon": ("layernorm_epsilon",),
            "hidden_dropout_prob": ("hidden_dropout_prob", "hidden_dropout"),
            "attention_probs_dropout_prob": ("attention_probs_dropout_prob", "attention_dropout"),
            "initializer_range": ("init_method_std", "initializer_range"),
        },
        fixed={"apply_residual_connection_post_layernorm": False},
        always={"model_type": "gpt3"},
        assumed={"layernorm_epsilon": 1e-12},  # saved files leave out what equals the class's default
    ),
    "megatron": ConfigTable(
        keys={
            "vocab_size": ("padded_vocab_size",),
            "hidden_size": ("hidden_size",),
            "num_layers": ("num_layers", "encoder_num_layers"),
            "num_attention_heads": ("num_attention_heads",),
            "ffn_hidden_size": ("ffn_hidden_size",),
            "max_position_embeddings": ("max_position_embeddings",),
            "layernorm_epsilon": ("layernorm_epsilon", "norm_epsilon"),
            "hidden_dropout_prob": ("hidden_dropout",),
            "attention_probs_dropout_prob": ("attention_dropout",),
            "initializer_range": ("init_method_std",),
        },
        fixed={
            "swiglu": False,
            "apply_residual_connection_post_layernorm": False,
            "group_query_attention": False,
            "num_experts": None,
            "normalization": "LayerNorm",
            "position_embedding_type": "learned_absolute",
            "add_bias_linear": True,
        },
    ),
}
