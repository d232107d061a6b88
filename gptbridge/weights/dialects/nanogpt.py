"""nanoGPT's `ckpt.pt`: Hugging Face's names, linear weights (out, in) as nn.Linear has them.

A dict of `model`, `model_args`, `optimizer`, `iter_num`, `best_val_loss` and `config`. `model_args` are what
its GPTConfig takes and nothing else, so that what they have no word for lies under a key of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gptbridge.errors import UsageError
from gptbridge.weights.architecture import BLOCK, TOP
from gptbridge.weights.configs.rows import Content, Described, Key, Pair, Row, Words
from gptbridge.weights.configs.table import ConfigTable
from gptbridge.weights.dialects.dialect import Dialect
from gptbridge.weights.dialects.files import Files, Place
from gptbridge.weights.dialects.huggingface import in_out_in_model
from gptbridge.weights.formats import TensorRef, Tree, WeightFile
from gptbridge.weights.layouts.gpt2 import gpt2_rules
from gptbridge.weights.layouts.rules import Layout
from gptbridge_specs import ModelSpec

if TYPE_CHECKING:
    from gptbridge.weights.conversion.target import Target

_ARGUMENTS = ("n_layer", "n_head", "n_embd", "block_size", "vocab_size", "dropout")  # and bias
_OWN_KEY = "gptbridge"  # what nanoGPT has no word for, for the way back
_BIASED = Layout(
    "nanogpt",
    "biased",
    gpt2_rules("model.transformer.", heads={"lm_head.weight": "model.lm_head.weight"}, out_in=True),
    dropped=(
        r"(?!model\.).*",  # the optimizer's state and the best loss, beside the model
        r"model\.transformer\.h\.\d+\.attn\.bias",  # causal masks, before flash attention
    ),
    staged=False,
)
# `bias=False`: no linear layer and no LayerNorm has one.
_BIAS_FREE = replace(
    _BIASED,
    variant="bias-free",
    rules=tuple(rule for rule in _BIASED.rules if not rule.canonical[0].endswith(".bias")),
    zeros=tuple(name for name in (*(f"h.{{}}.{name}" for name in BLOCK), *TOP) if name.endswith(".bias")),
)


def _fitting(weights: WeightFile) -> tuple[Layout, ...]:
    """Return the layout that model_args say, both where they do not: `bias` came later.

    Return none where linear weights are (in, out): those are Hugging Face's, whose names are the same.
    """
    if in_out_in_model(weights):
        return ()
    arguments = weights.tree.get("model_args") if isinstance(weights.tree, dict) else None
    bias = arguments.get("bias") if isinstance(arguments, dict) else None
    if not isinstance(bias, bool):
        return _BIASED, _BIAS_FREE
    return (_BIASED if bias else _BIAS_FREE,)


def _likely_gelu(content: Content) -> str:
    """It computed the tanh form before May 2023; files of before January 2023 say no `bias`."""
    return "gelu_erf" if "bias" in content else "gelu_tanh"


def _only(name: str, fits: bool, what: str) -> Mapping[str, Any]:
    if not fits:
        raise UsageError(f"nanoGPT has {what}, and the model's {name} is another")
    return {}


def _write_width(described: Described) -> Mapping[str, Any]:
    model = described.model
    fits = model.ffn_size == 4 * model.hidden_size
    return _only(f"ffn_hidden_size={model.ffn_size}", fits, "a feed-forward width of 4 x hidden_size")


def _write_tie(described: Described) -> Mapping[str, Any]:
    tied = described.model.tie_word_embeddings
    return _only(f"tie_word_embeddings={str(tied).lower()}", tied, "one matrix for embedding and head")


class _AttentionDropout(Row):
    """nanoGPT has one rate for both kinds of dropout."""

    fields = ("attention_probs_dropout_prob",)
    keys = ("attention_dropout",)

    def read(self, content: Content, where: object) -> Mapping[str, Any]:
        return {self.fields[0]: content.get(self.keys[0], content.get("dropout", 0.0))}

    def write(self, described: Described) -> Mapping[str, Any]:
        model = described.model
        same = model.attention_probs_dropout_prob == model.hidden_dropout_prob
        return {} if same else {self.keys[0]: model.attention_probs_dropout_prob}

    def not_computed(self, model: ModelSpec) -> str | None:
        rate, other = model.hidden_dropout_prob, model.attention_probs_dropout_prob
        return None if rate == other else f"{self.fields[0]}={rate}, and this model has {other}"


def _tree(names: Sequence[str], target: Target) -> Tree:
    """Return the dict that nanoGPT's sample.py and train.py resume from."""
    model: dict[Any, Tree] = {name.removeprefix("model."): TensorRef(name) for name in names}
    model["lm_head.weight"] = model["transformer.wte.weight"]
    said: dict[Any, Tree] = dict(target.config())
    arguments: dict[Any, Tree] = {key: said.pop(key) for key in _ARGUMENTS}
    decayed = sum(not name.endswith(".bias") and ".ln_" not in name for name in names)
    return {
        "model": model,
        "optimizer": _fresh_optimizer(decayed, len(names) - decayed),
        "model_args": {**arguments, "bias": not target.layout.zeros},
        "iter_num": 0,
        "best_val_loss": 1e9,
        "config": {},
        **({_OWN_KEY: said} if said else {}),
    }


def _fresh_optimizer(*counts: int) -> Tree:
    """Return AdamW's state before its first step, with nanoGPT's settings: matrices decay, the rest not."""
    settings: dict[Any, Tree] = {
        "lr": 6e-4,
        "betas": (0.9, 0.95),
        "eps": 1e-8,
        "amsgrad": False,
        "maximize": False,
    }
    groups: list[Tree] = []
    first = 0
    for count, decay in zip(counts, (0.1, 0.0), strict=True):
        groups.append({**settings, "weight_decay": decay, "params": [*range(first, first + count)]})
        first += count
    return {"state": {}, "param_groups": groups}


DIALECT = Dialect(
    "nanogpt",
    preference=80,
    layouts=(_BIASED, _BIAS_FREE),
    fitting=_fitting,
    config=ConfigTable(
        in_weights=("model_args", _OWN_KEY),
        unsaid={"activation": "gelu_erf"},
        rows=(
            Key("num_layers", ("n_layer",)),
            Key("num_attention_heads", ("n_head",)),
            Key("hidden_size", ("n_embd",)),
            Key("max_position_embeddings", ("block_size",)),
            Key("vocab_size", ("vocab_size",)),
            Key("hidden_dropout_prob", ("dropout",), absent=0.0),
            _AttentionDropout(),
            Pair("ffn_hidden_size", (), lambda content, where: None, _write_width),
            Pair("tie_word_embeddings", (), lambda content, where: None, _write_tie),
            Words(
                "activation",
                ("activation",),
                {"gelu_erf": "gelu_erf", "gelu_tanh": "gelu_tanh"},
                hard_coded="gelu_erf",
                likely=_likely_gelu,
            ),
            Key("layernorm_epsilon", ("layernorm_epsilon",), absent=1e-5, hard_coded=1e-5),
            Key("initializer_range", ("initializer_range",), absent=0.02, hard_coded=0.02),
        ),
    ),
    files=Files(Place("torch", "ckpt.pt", tree=_tree), single=("ckpt.pt",)),
)
