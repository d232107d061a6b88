"""ModelScope GPT-3, which grew from Megatron-LM: linear weights (out, in), two families of names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gptbridge.weights.configs.rows import Content, Described, Key, Pair, Switch, Written
from gptbridge.weights.configs.table import ConfigTable
from gptbridge.weights.dialects.dialect import Contents, Dialect
from gptbridge.weights.dialects.files import Files, Place, Ranked
from gptbridge.weights.dialects.megatron import block, classic, left_out, nested, without_chunk
from gptbridge.weights.formats import Tree
from gptbridge.weights.layouts.rules import CONCATENATED, Layout, rules

if TYPE_CHECKING:
    from gptbridge.weights.conversion.target import Split, Target, TargetFile

_EPSILON = 1e-12  # of layer norms, by default; saved files leave out what equals their class's default


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
            block=block("attention", "layernorm", CONCATENATED),
            blocks=f"{prefix}transformer.layers.{{}}.",
        ),
        dropped=left_out(prefix),
        plain_name=without_chunk,
        layers_count_from_stage=True,
        activations=("gelu_erf",),
    )


def _large(variant: str, prefix: str) -> Layout:
    """ModelScope's 1.3B and up: Megatron's classic names."""
    names = ("encoder", "self_attention", "layernorm")
    return classic("modelscope", variant, prefix, names, 2)


_LAYOUTS = (
    _large("large", "module.language_model."),
    _large("large in two modules", "module.module.language_model."),
    _large("large without module", "language_model."),
    _base("base", "language_model."),
    _base("base with model", "model.language_model."),
    _base("base in state_dict", "state_dict.language_model."),
    replace(
        _base("base with model in state_dict", "model.language_model."),
        plain_name=lambda name: name.removeprefix("state_dict."),
    ),
)


def _read_gelu(content: Content, where: object) -> str:
    return "gelu_tanh" if content.get("bias_gelu_fusion", True) else "gelu_erf"


def _write_gelu(described: Described) -> Mapping[str, Any]:
    return {"bias_gelu_fusion": described.model.activation == "gelu_tanh"}


def _companions(target: Target, files: Sequence[TargetFile]) -> Contents:
    large = target.layout.variant.startswith("large")
    tensor = target.split.tensor
    content: dict[str, Any] = {
        "framework": "pytorch",
        "task": "text-generation",
        "model": {"type": "gpt3"},
        "pipeline": {"type": "gpt3-generation" if large else "text-generation"},
    }
    if large:  # ModelScope takes the model class of the larger sizes where it finds this section
        content["megatron"] = {
            "world_size": tensor,
            "tensor_model_parallel_size": tensor,
            "checkpoint_tensor_model_parallel_size": tensor,
        }
    return {"config.json": target.config(), "configuration.json": content}


def _ranked(tensor: int, pipeline: int, split: Split) -> str:
    return f"model/{_RANKED.path(tensor, pipeline, split)}"


def _tree(names: Sequence[str], target: Target) -> Tree:
    return nested(names, depth=1)


_RANKED = Ranked("mp_rank_{tensor:02}_model_states.pt")
DIALECT = Dialect(
    "modelscope",
    preference=60,
    layouts=tuple(replace(layout, staged=False) for layout in _LAYOUTS),  # it has no pipeline
    config=ConfigTable(
        files=("config.json",),
        unsaid={"layernorm_epsilon": _EPSILON},
        rows=(
            Written("model_type", "gpt3"),
            Key("vocab_size", ("vocab_size",)),
            Key("hidden_size", ("hidden_size",)),
            Key("num_layers", ("num_hidden_layers", "num_layers")),
            Key("num_attention_heads", ("num_attention_heads",)),
            Key("ffn_hidden_size", ("ffn_hidden_size", "intermediate_size")),
            Key("max_position_embeddings", ("max_position_embeddings",)),
            Key("layernorm_epsilon", ("layernorm_epsilon",), absent=_EPSILON),
            Key("hidden_dropout_prob", ("hidden_dropout_prob", "hidden_dropout")),
            Key("attention_probs_dropout_prob", ("attention_probs_dropout_prob", "attention_dropout")),
            Key("initializer_range", ("init_method_std", "initializer_range")),
            Pair("activation", ("bias_gelu_fusion",), _read_gelu, _write_gelu),
            Switch("apply_residual_connection_post_layernorm", False),
        ),
    ),
    files=Files(
        Place("torch", "model/mp_rank_00_model_states.pt", _ranked, _tree),
        variants={"base": Place("torch", "pytorch_model.bin")},  # the base and large sizes
        ranked=(_RANKED,),
        folders=("model",),
        others=(r"configuration\.json",),
    ),
    companions=_companions,
    padded=True,
)
