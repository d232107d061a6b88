"""MindFormers GPT-2: attention inputs (out, in) and apart, every other linear weight (in, out).

LoRA deltas stand beside the weights they change: mindpet's `mindpet_delta_lora_a` is (rank, in),
`mindpet_delta_lora_b` (out, rank).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptbridge.errors import UsageError
from gptbridge.weights.architecture import LORA_A, LORA_B
from gptbridge.weights.configs.numbers import finite_number, whole_number
from gptbridge.weights.configs.rows import (
    TOKENS,
    Content,
    Described,
    Key,
    Pair,
    Switch,
    Words,
    Written,
    labels,
)
from gptbridge.weights.configs.table import ConfigTable
from gptbridge.weights.dialects.dialect import Contents, Dialect
from gptbridge.weights.dialects.files import Files, Place, RankFolders, Unread
from gptbridge.weights.dialects.mindspore.core_model import core_layouts
from gptbridge.weights.dialects.mindspore.ranks import find_ranks, rank_stages
from gptbridge.weights.dialects.mindspore.strategy_files import strategies_of
from gptbridge.weights.layouts.rules import HEADS, Layout, Table, rules

if TYPE_CHECKING:
    from gptbridge.weights.conversion.target import Split, Target, TargetFile
    from gptbridge.weights.formats import WeightFile

# (name of the layer, the letters of its heads) of q, k and v
_QKV = {part: (f"attention.dense{n}", HEADS[part]) for n, part in enumerate(HEADS, start=1)}
_TRAINING = (
    r"(adam_[mv]|muon_\w+|moment[12]|moments|exp_avg(_sq)?|accu_grads|main_param)\..*",  # an optimizer's
    r"[^.]+",  # its counters, rates and scales; weights lie in cells, so their names have dots
)


def _qkv() -> Table:
    """Return the rows of q, k and v, and of the LoRA beside them."""
    rows: dict[str | tuple[str, ...], tuple[str, str]] = {}
    for part, (name, heads) in _QKV.items():
        rows[f"attn.{part}.weight"] = (f"{name}.weight", f"({heads}) i")
        rows[f"attn.{part}.bias"] = (f"{name}.bias", f"({heads})")
        rows[f"attn.{part}{LORA_A}"] = (f"{name}.mindpet_delta_lora_a", "r i")
        rows[f"attn.{part}{LORA_B}"] = (f"{name}.mindpet_delta_lora_b", f"({heads}) r")
    return rows


def _variant(name: str, prefix: str) -> Layout:
    """Return the layout of one of the model classes."""
    return Layout(
        "mindspore",
        name,
        rules(
            top={
                "wte.weight": (f"{prefix}embedding.word_embedding.embedding_table", "v i"),
                "wpe.weight": (f"{prefix}embedding.position_embedding.embedding_table", "t i"),
                "ln_f.weight": (f"{prefix}layernorm.gamma", "i"),
                "ln_f.bias": (f"{prefix}layernorm.beta", "i"),
                "score.weight": ("score.weight", "c i"),
            },
            block={
                "ln_1.weight": ("layernorm1.gamma", "i"),
                "ln_1.bias": ("layernorm1.beta", "i"),
                **_qkv(),
                "attn.c_proj.weight": ("attention.projection.weight", "(m g d) o"),
                "attn.c_proj.bias": ("attention.projection.bias", "o"),
                "ln_2.weight": ("layernorm2.gamma", "i"),
                "ln_2.bias": ("layernorm2.beta", "i"),
                "mlp.c_fc.weight": ("output.mapping.weight", "i f"),
                "mlp.c_fc.bias": ("output.mapping.bias", "f"),
                "mlp.c_proj.weight": ("output.projection.weight", "f o"),
                "mlp.c_proj.bias": ("output.projection.bias", "o"),
            },
            blocks=f"{prefix}blocks.{{}}.",
        ),
        dropped=(rf"({re.escape(prefix)}blocks\.\d+\.)?attention\.(beta|masked_beta)", *_TRAINING),  # masks
        # The head is the first stage's table once more. Each tensor rank has it whole (vocab_emb_dp).
        repeated_in_last_stage=(("wte.weight", f"{prefix}embedding.word_embedding.embedding_table"),),
        cut="mf",
    )


def _read_width(content: Content, where: object) -> int | None:
    """Return the feed-forward width, which the file says as it is or as a multiple of the hidden width."""
    for name in _WIDTHS[1:]:
        if name in content:
            return whole_number(content[name], where)
    hidden = _HIDDEN.read(content, where).get("hidden_size")
    if "expand_ratio" not in content or hidden is None:
        return None
    return whole_number(content["expand_ratio"], where) * whole_number(hidden, where)


def _read_tie(content: Content, where: object) -> bool | None:
    untied = content.get(_UNTIED)
    return None if untied is None else not untied


def _write_width(described: Described) -> Mapping[str, Any]:
    model = described.model
    ratio, rest = divmod(model.ffn_size, model.hidden_size)
    if rest:
        raise UsageError(
            f"the model's ffn_hidden_size is {model.ffn_size}, but MindFormers has whole multiples of "
            f"hidden_size={model.hidden_size} only"
        )
    return {"expand_ratio": ratio}


def _read_alpha(content: Content, where: object) -> float | None:
    settings = content.get("pet_config")
    alpha = settings.get("lora_alpha") if isinstance(settings, dict) else None
    return None if alpha is None else finite_number(alpha, "lora_alpha", where)


def _write_lora(described: Described) -> Mapping[str, Any]:
    lora = described.lora
    if lora is None:
        return {}
    settings = {
        "pet_type": "lora",
        "lora_rank": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": "|".join(f".*{_QKV[target][0].rpartition('.')[2]}" for target in lora.targets),
    }
    return {"pet_config": settings}


def _companions(target: Target, files: Sequence[TargetFile]) -> Contents:
    """Return the configuration, and for ranks what MindSpore needs to merge or split their files."""
    content = target.config()
    kind = "GPT2LMHeadModel" if target.num_labels is None else "GPT2ForSequenceClassification"
    content["model"]["arch"] = {"type": kind}
    strategies = {} if target.split.whole else strategies_of(files, target.split)
    return {"model.yaml": content, **strategies}


def _ranked(tensor: int, pipeline: int, split: Split) -> str:
    return f"rank_{pipeline * split.tensor + tensor}/gpt2.ckpt"


def _fitting(weights: WeightFile) -> tuple[Layout, ...]:
    return (*_LAYOUTS, *core_layouts(weights, _TRAINING))


_SLICES = "metadata.json"  # of MindFormers 2
_LAYOUTS = (_variant("GPT2LMHeadModel", "backbone."), _variant("GPT2Model", ""))
_UNTIED = "untie_embeddings_and_output_weights"
_WIDTHS = ("expand_ratio", "ffn_hidden_size", "intermediate_size")
_HIDDEN = Key("hidden_size", ("hidden_size", "embedding_size"))
DIALECT = Dialect(
    "mindspore",
    aliases=("mindformers",),
    preference=40,
    layouts=_LAYOUTS,
    fitting=_fitting,
    config=ConfigTable(
        files=("model.yaml", "config.yaml", "*.yaml"),
        section=("model", "model_config"),
        rows=(
            Written("type", "GPT2Config"),
            Key("vocab_size", ("vocab_size",)),
            _HIDDEN,
            Key("num_layers", ("num_layers", "num_hidden_layers", "n_layer")),
            Key("num_attention_heads", ("num_heads", "num_attention_heads", "n_head")),
            Key("max_position_embeddings", ("max_position_embeddings", "seq_length")),
            Key("layernorm_epsilon", ("layernorm_epsilon", "layer_norm_epsilon"), hard_coded=1e-5),
            Key("hidden_dropout_prob", ("hidden_dropout_rate", "hidden_dropout_prob", "hidden_dropout")),
            Key(
                "attention_probs_dropout_prob",
                ("attention_dropout_rate", "attention_dropout_prob", "attention_dropout"),
            ),
            Key("initializer_range", ("initializer_range", "init_method_std")),
            Words(
                "activation",
                ("hidden_act",),
                {"gelu": "gelu_tanh", "fast_gelu": "quick_gelu", "gelu_erf": "gelu_erf"},
                absent="gelu_tanh",
            ),
            labels("num_labels"),
            *TOKENS,
            Pair("ffn_hidden_size", _WIDTHS, _read_width, _write_width),
            Pair("lora_alpha", ("pet_config",), _read_alpha, _write_lora),
            # MindFormers 2's: the tie, which the weights tell, and what makes another architecture
            Pair("tie_word_embeddings", (_UNTIED,), _read_tie, lambda described: {}),
            Switch("normalization", "LayerNorm"),
            Switch("position_embedding_type", "learned_absolute"),
            Switch("gated_linear_unit", False),
            Switch("add_bias_linear", True),
            Switch("multi_latent_attention", False),
            Switch("apply_residual_connection_post_layernorm", False),
            Switch("use_contiguous_weight_layout_attention", False),
        ),
    ),
    files=Files(
        Place("ckpt", "gpt2.ckpt", _ranked),
        single=(
            "param_name_map.json",  # of safetensors that MindSpore merged from those of ranks
            _SLICES,
            "*model-0000000-0000001.safetensors",  # that of one rank, without metadata.json
        ),
        unread=(
            Unread(
                r"(?:.*-)?model-\d{7}-(?!0000001)\d{7}\.safetensors",
                f"holds slices of MindFormers 2 without their {_SLICES}, which alone says how they are cut",
                "It is written last: a save that was cut short lacks it",
                unless=_SLICES,
            ),
        ),
        rank_folders=RankFolders(find_ranks, rank_stages),
        others=(r"rank_\d+", "strategy"),
    ),
    companions=_companions,
    padded=True,
)
