"""Megatron-LM GPT: linear weights (out, in).

The rows of the fused qkv matrix depend on `checkpoint_version`: 0 is (q|k|v, head, place),
1 is (head, place, q|k|v), 2 and 3 are (head, q|k|v, place). Names changed over the years; each
generation is a row of `_GENERATIONS`. Megatron-Core has its own names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

from gptbridge.errors import BadInput, printable
from gptbridge.weights.configs.rows import Content, Described, Key, Pair, Switch
from gptbridge.weights.configs.table import ConfigTable
from gptbridge.weights.dialects.dialect import Contents, Dialect
from gptbridge.weights.dialects.files import Files, Place, Pointer, Ranked
from gptbridge.weights.formats import Namespace, TensorRef, Tree, WeightFile
from gptbridge.weights.formats.dcp import FORMAT as DISTRIBUTED
from gptbridge.weights.formats.dcp import split_layers
from gptbridge.weights.layouts.amid_training import amid_training, is_state, prefix_of_model
from gptbridge.weights.layouts.rules import BY_HEAD, CONCATENATED, Layout, Table, rows, rules

if TYPE_CHECKING:
    from gptbridge.weights.conversion.target import Target, TargetFile

_GELU = ("gelu_tanh", "gelu_erf")  # one switch chooses between them
QKV_ROWS = {0: CONCATENATED, 1: "(m d (q:g | k: | v:))", 2: BY_HEAD, 3: BY_HEAD}
_BUFFERS = (
    r".*\._extra_state",
    r".*\.rotary_emb\.inv_freq",
    r".*word_embeddings_for_head\.weight",  # the last pipeline stage's copy of wte
)
_TRAINING = r"(optimizer|\w+_scheduler|\w*rng_state|rng_tracker_states)(\..*)?"


def left_out(prefix: str) -> tuple[str, ...]:
    """Return what is no weight: all beside the wrapper of the weights, or training's state where none is."""
    wrapper = prefix.partition(".")[0]
    return (*_BUFFERS, _TRAINING if wrapper in ("", "language_model") else rf"(?!{wrapper}\.).*")


# With virtual stages, a rank has `model0`, `model1`, ... in place of `model`; under DeepSpeed, `module`.
_CHUNK = re.compile(r"^model(\d{1,4})\.")


def _chunk_of(name: str) -> int:
    """Return the virtual stage of a tensor of a rank; 0 for what is in none."""
    found = _CHUNK.match(name)
    return int(found[1]) if found else 0


def _plain(name: str) -> str:
    """Return the name of a tensor of a virtual stage, or of a peeled `module`, as one of `model`."""
    return _CHUNK.sub("model.", f"model.{name}" if name.startswith("language_model.") else name)


# (folder of the layers, attention's name, norms' suffix), newest of the classic names first
_GENERATIONS = tuple(
    product(("encoder", "transformer"), ("self_attention", "attention"), ("layernorm", "norm"))
)


def _block(attention: str, norm: str, rows_of_qkv: str) -> Table:
    """Return the rules of one layer."""
    names = {
        "ln_1.*": f"input_{norm}.*",
        "attn.qkv.*": f"{attention}.query_key_value.*",
        "attn.c_proj.*": f"{attention}.dense.*",
        "ln_2.*": f"post_attention_{norm}.*",
        "mlp.c_fc.*": "mlp.dense_h_to_4h.*",
        "mlp.c_proj.*": "mlp.dense_4h_to_h.*",
    }
    return rows(names, qkv=rows_of_qkv, out_in=True)


# Names of Transformer Engine's own TransformerLayer, which had the classic model around it.
_ENGINE = rows(
    {
        "ln_1.*": "self_attention.layernorm_qkv.layer_norm_*",
        "attn.qkv.*": "self_attention.layernorm_qkv.*",
        "attn.c_proj.*": "self_attention.proj.*",
        "ln_2.*": "layernorm_mlp.layer_norm_*",
        "mlp.c_fc.*": "layernorm_mlp.fc1_*",
        "mlp.c_proj.*": "layernorm_mlp.fc2_*",
    },
    qkv=BY_HEAD,
    out_in=True,
)


def _top(prefix: str, embedding: str, norm: str) -> Table:
    names = {
        "wte.weight": f"{prefix}{embedding}word_embeddings.weight",
        "wpe.weight": f"{prefix}{embedding}position_embeddings.weight",
        "ln_f.*": f"{prefix}{norm}.*",
    }
    head = {"lm_head.weight": f"{prefix}output_layer.weight"} if embedding else {}
    return rows({**names, **head})


def classic(
    dialect: str,
    variant: str,
    prefix: str,
    names: tuple[str, str, str],
    version: int,
    layer: Table | None = None,
) -> Layout:
    """Return the layout of one generation of names, below `prefix`, for a checkpoint_version.

    `layer` are the names in a layer, absent: the generation's.
    """
    folder, attention, norm = names
    return Layout(
        dialect,
        variant,
        rules(
            top=_top(prefix, "embedding.", f"{folder}.final_{norm}"),
            block=layer or _block(attention, norm, QKV_ROWS[version]),
            blocks=f"{prefix}{folder}.layers.{{}}.",
        ),
        dropped=left_out(prefix),
        plain_name=_plain,
        layers_count_from_stage=True,
        repeated_in_last_stage=(("wte.weight", "model.word_embeddings_for_head.weight"),),
        activations=_GELU,
    )


def earliest(dialect: str, variant: str, prefix: str) -> Layout:
    """Return the layout of the first names: no `embedding.`, and one list of q, k and v rows."""
    return Layout(
        dialect,
        variant,
        rules(
            top=_top(prefix, "", "transformer.final_layernorm"),
            block=_block("attention", "layernorm", CONCATENATED),
            blocks=f"{prefix}transformer.layers.{{}}.",
        ),
        dropped=left_out(prefix),
        layers_count_from_stage=True,
    )


def core(prefix: str, *, fused_norms: bool) -> Layout:
    """Return the layout of Megatron-Core's names, below `prefix`; norms may be in the next linear layer."""
    names = {
        "ln_1.*": "self_attention.linear_qkv.layer_norm_*" if fused_norms else "input_layernorm.*",
        "attn.qkv.*": "self_attention.linear_qkv.*",
        "attn.c_proj.*": "self_attention.linear_proj.*",
        "ln_2.*": "mlp.linear_fc1.layer_norm_*" if fused_norms else "pre_mlp_layernorm.*",
        "mlp.c_fc.*": "mlp.linear_fc1.*",
        "mlp.c_proj.*": "mlp.linear_fc2.*",
    }
    return Layout(
        "megatron",
        "core-fused-norms" if fused_norms else "core",
        rules(
            top=_top(prefix, "embedding.", "decoder.final_layernorm"),
            block=rows(names, qkv=BY_HEAD, out_in=True),
            blocks=f"{prefix}decoder.layers.{{}}.",
        ),
        dropped=left_out(prefix),
        plain_name=_plain,
        layers_count_from_stage=True,
        repeated_in_last_stage=(("wte.weight", f"{prefix}output_layer.weight"),),
        activations=_GELU,
    )


def _classics(version: int) -> tuple[Layout, ...]:
    """Return the layouts of a checkpoint_version in every generation of names."""
    variant, (newest, *older) = f"version-{version}", _GENERATIONS
    engine = ("norm", "layernorm") if QKV_ROWS[version] == BY_HEAD else ()
    kinds: list[tuple[str, tuple[str, str, str], Table | None]] = [
        (variant, newest, None),
        *((f"{variant} with {', '.join(names)}", names, None) for names in older),
        *((f"engine-{variant} with {x}", ("encoder", "self_attention", x), _ENGINE) for x in engine),
    ]
    prefix = "model.language_model."
    return tuple(classic("megatron", name, prefix, names, version, layer) for name, names, layer in kinds)


def _layer_name(name: str) -> str | None:
    """Return the name with a layer's number of a tensor that holds it of all layers, as torch_dist has it."""
    found = _STACKED.fullmatch(name)
    return f"{found[1]}{{}}.{found[2]}" if found and not is_state(name) else None


def _distributed(layout: Layout, weights: WeightFile) -> Layout:
    """Return a layout of Megatron-Core as a distributed checkpoint has it, below whatever name."""
    prefix = prefix_of_model(layout, weights.tensors, weights.path)
    within = f"{layout.variant} in {prefix.rstrip('.')}" if prefix else layout.variant
    return replace(amid_training(layout, prefix), variant=within)


def _fitting(weights: WeightFile) -> tuple[Layout, ...]:
    """Return the layouts of the file's checkpoint_version; one without is version 0, as Megatron reads it."""
    if weights.format == DISTRIBUTED:
        return tuple(_distributed(layout, weights) for layout in _DISTRIBUTED)
    value = weights.tree.get("checkpoint_version", 0) if isinstance(weights.tree, dict) else 0
    if value not in (0, 1, 2, 3) or isinstance(value, bool):
        raise BadInput(f"checkpoint_version is {printable(value)}", where=weights.path, allowed="0, 1, 2, 3")
    return (*_CLASSICS[int(value)], *_CORE, *_EARLIEST[: not value])  # type: ignore[arg-type]


def _iteration(text: str) -> tuple[str, ...]:
    if text == "release":
        return (text,)
    if not (text.isascii() and text.isdigit()):
        return ()
    # Megatron's own, those of before 2020, DeepSpeed's, MindFormers'
    return f"iter_{int(text):07d}", text, f"global_step{text}", f"iteration_{int(text):08d}"


def _read_gelu(content: Content, where: object) -> str:
    """It computes tanh GELU when it fuses bias and GELU, as by default, or is told to."""
    tanh = content.get("openai_gelu") or content.get("bias_gelu_fusion", True)
    return "gelu_tanh" if tanh else "gelu_erf"


def _read_tie(content: Content, where: object) -> bool | None:
    untied = content.get(_UNTIED)
    return None if untied is None else not untied


def _write_gelu(described: Described) -> Mapping[str, Any]:
    return {"bias_gelu_fusion": described.model.activation == "gelu_tanh", "openai_gelu": False}


def _tree(names: Sequence[str], target: Target) -> Tree:
    """Return Megatron-LM's dict: nested modules down to the blocks, args, checkpoint_version."""
    version, _, number = target.layout.variant.partition("-")
    args = {
        **target.config(),
        "tensor_model_parallel_size": target.split.tensor,
        "pipeline_model_parallel_size": target.split.pipeline,
        _UNTIED: not target.model.tie_word_embeddings,
        "position_embedding_type": "learned_absolute",
    }
    tree: dict[Any, Tree] = {
        "args": Namespace(args),
        "checkpoint_version": float(number) if version == "version" else float(_NEWEST),
        "iteration": 0,
    }
    flat = version == "core"
    return {**tree, **nested(names, depth=1 if flat else 5)}


def nested(names: Sequence[str], *, depth: int) -> dict[Any, Tree]:
    """Return a dict of dicts, at most `depth` deep; what is below a module of layers stays one key."""
    tree: dict[Any, Any] = {}
    for name in names:
        module, layers, below = name.partition(".layers.")
        steps = module.split(".", depth) if not layers else [*module.split("."), f"layers.{below}"]
        if len(steps) > depth + 1:
            steps = name.split(".", depth)
        inner = tree
        for step in steps[:-1]:
            inner = inner.setdefault(step, {})
        inner[steps[-1]] = TensorRef(name)
    return tree


def _companions(target: Target, files: Sequence[TargetFile]) -> Contents:
    return {"latest_checkpointed_iteration.txt": "release\n"}


_STACKED = re.compile(r"((?:.*\.)?decoder\.layers\.)(?!\d)([^{}]*)")
_UNTIED = "untie_embeddings_and_output_weights"
_NEWEST = 3  # what today's Megatron-LM writes
_CLASSICS = {version: _classics(version) for version in QKV_ROWS}
_CORE = tuple(core("model.", fused_norms=fused) for fused in (False, True))
_DISTRIBUTED = tuple(core("", fused_norms=fused) for fused in (True, False))
_EARLIEST = (
    replace(
        earliest("megatron", "earliest of 2019", ""),
        plain_name=lambda name: name.removeprefix("model."),
        activations=("gelu_tanh",),
    ),
)
_RANKED = Ranked(
    "mp_rank_{tensor:02}[_{pipeline:03}]",
    ("model_optim_rng.pt", "model_rng.pt"),
    folder="release",
    passed_over=("optim.pt",),  # a data-parallel rank's part of the distributed optimizer, until 2023
)
DIALECT = Dialect(
    "megatron",
    preference=70,
    layouts=(*_CLASSICS[3], *_CORE, *_CLASSICS[2], *_CLASSICS[1], *_CLASSICS[0], *_EARLIEST),
    fitting=_fitting,
    virtual_stage=_chunk_of,
    seen=partial(split_layers, name_of_layers=_layer_name),
    config=ConfigTable(
        files=("common.pt",),  # beside a distributed checkpoint
        in_weights=("args",),
        rows=(
            Key("vocab_size", ("padded_vocab_size",)),
            Key("hidden_size", ("hidden_size",)),
            Key("num_layers", ("num_layers", "encoder_num_layers")),
            Key("num_attention_heads", ("num_attention_heads",)),
            Key("ffn_hidden_size", ("ffn_hidden_size",)),
            Key("max_position_embeddings", ("max_position_embeddings",)),
            Key("layernorm_epsilon", ("layernorm_epsilon", "norm_epsilon")),
            Key("hidden_dropout_prob", ("hidden_dropout",)),
            Key("attention_probs_dropout_prob", ("attention_dropout",)),
            Key("initializer_range", ("init_method_std",)),
            Pair("activation", ("bias_gelu_fusion", "openai_gelu"), _read_gelu, _write_gelu),
            Switch("swiglu", False),
            Switch("apply_residual_connection_post_layernorm", False),
            Switch("group_query_attention", False),
            Switch("num_experts", None, also=([1],)),  # the second words are those of DeepSpeed's forks
            Switch("normalization", "LayerNorm", also=("layernorm",)),
            Switch("position_embedding_type", "learned_absolute", also=("PositionEmbeddingType(2)",)),
            Switch("use_rotary_position_embeddings", False),
            Switch("add_position_embedding", True),
            Switch("add_bias_linear", True),
            Switch("apply_layernorm_1p", False),
            Switch("squared_relu", False),
            Switch("multi_latent_attention", False),
            Pair("tie_word_embeddings", (_UNTIED,), _read_tie, lambda described: {}),  # _tree writes it
        ),
    ),
    files=Files(
        Place("torch", "release/mp_rank_00/model_optim_rng.pt", _RANKED.path, _tree),
        single=("model_optim_rng.pt",),
        ranked=(_RANKED,),
        pointers=(Pointer("latest_checkpointed_iteration.txt", _iteration, "release or a number"),),
        others=("release", r"iter_\d{7}"),
    ),
    companions=_companions,
    padded=True,
)
