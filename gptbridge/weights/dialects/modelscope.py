"""ModelScope GPT-3, which grew from Megatron-LM: linear weights (out, in), two families of names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gptbridge.weights.configs.rows import Content, Described, Key, Pair, Switch, Written
from gptbridge.weights.configs.table import ConfigTable
from gptbridge.weights.dialects.dialect import Contents, Dialect
from gptbridge.weights.dialects.files import Files, Place, Ranked
from gptbridge.weights.dialects.megatron import classic, earliest, nested
from gptbridge.weights.formats import Tree, WeightFile
from gptbridge.weights.layouts.rules import Layout

if TYPE_CHECKING:
    from gptbridge.weights.conversion.target import Target, TargetFile

_EPSILON = 1e-12  # of layer norms, by default; saved files leave out what equals their class's default


# What its trainer saves: {"meta": ..., "state_dict": ...}, and its classes, keep the model in these.
_WRAPPED = re.compile(
    r"(?:(?:model|state_dict|dist_model)\.)*(?:state_dict|dist_model)\.(?:model\.)?(?=language_model\.)"
)


def _unwrapped(name: str) -> str:
    return (
        _WRAPPED.sub("", name, count=1) if name.startswith(("model.", "state_dict.", "dist_model.")) else name
    )


def _base(variant: str, prefix: str) -> Layout:
    """ModelScope's base and large sizes."""
    return replace(earliest("modelscope", variant, prefix), activations=("gelu_erf",))


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
)
# What Megatron-LM's own files hold beside the weights, under DeepSpeed too, whose files have the same names.
_MEGATRONS = ("args", "checkpoint_version", "ds_version", "ds_config")


def _fitting(weights: WeightFile) -> tuple[Layout, ...]:
    """Return its layouts, none for a file that says that it is Megatron-LM's."""
    tree = weights.tree if isinstance(weights.tree, dict) else {}
    return () if any(key in tree for key in _MEGATRONS) else DIALECT.layouts


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


def _tree(names: Sequence[str], target: Target) -> Tree:
    return nested(names, depth=1)


_RANKED = Ranked(  # DeepSpeed's name for any model
    "mp_rank_{tensor:02}_model_states.pt", tells_dialect=False, folder="model"
)
DIALECT = Dialect(
    "modelscope",
    preference=60,
    same_names=("megatron",),  # a fork of it saves its names in `module.` too
    layouts=tuple(
        replace(
            layout,
            staged=False,  # it has no pipeline
            plain_name=_unwrapped,
            dropped=(*layout.dropped, r"meta\..*"),
        )
        for layout in _LAYOUTS
    ),
    fitting=_fitting,
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
        Place("torch", "model/mp_rank_00_model_states.pt", _RANKED.path, _tree),
        variants={"base": Place("torch", "pytorch_model.bin")},  # the base and large sizes
        ranked=(_RANKED,),
        folders=("model",),
        others=(r"configuration\.json",),
    ),
    companions=_companions,
    padded=True,
)
