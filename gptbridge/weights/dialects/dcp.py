"""Hugging Face GPT-2 in a torch distributed checkpoint: `.metadata`, and tensors in parts in `.distcp` files.

torchtitan, FSDP, Accelerate and Lightning save so. What leads to the model's names is theirs: `model.`,
`app.model.` or nothing; the optimizer lies beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gptbridge.weights.dialects.dialect import Dialect
from gptbridge.weights.dialects.files import Files, Place, Unread
from gptbridge.weights.dialects.huggingface import CONFIG, variant
from gptbridge.weights.formats import TensorRef, Tree, WeightFile
from gptbridge.weights.formats.dcp import FORMAT
from gptbridge.weights.layouts.amid_training import amid_training
from gptbridge.weights.layouts.rules import Layout

if TYPE_CHECKING:
    from gptbridge.weights.conversion.target import Target

_READ = (variant("dcp", "GPT2LMHeadModel", "transformer."), variant("dcp", "GPT2Model", ""))
_MODEL, _HEAD, _TABLE = "model.", "lm_head.weight", "transformer.wte.weight"


def _below(prefix: str, layout: Layout, name: str) -> Layout:
    """Return a layout all of whose names begin with `prefix`."""
    rules = tuple(replace(rule, native=prefix + rule.native) for rule in layout.rules)
    return replace(layout, variant=name, rules=rules)


def _fitting(weights: WeightFile) -> tuple[Layout, ...]:
    return tuple(amid_training(layout, weights.tensors, weights.path) for layout in _READ)


def _tree(names: Sequence[str], target: Target) -> Tree:
    """Return the state dict, which has a tied head under both of its names."""
    prefix = _MODEL if target.layout.variant == "model" else ""
    inner: dict[str, Tree] = {name.removeprefix(prefix): TensorRef(name) for name in names}
    if target.model.tie_word_embeddings:
        inner[_HEAD] = TensorRef(prefix + _TABLE)
    tree: dict[Any, Tree] = {**inner}
    return {_MODEL.rstrip("."): tree} if prefix else tree


DIALECT = Dialect(
    "dcp",
    preference=5,
    layouts=(_below(_MODEL, _READ[0], "model"), _below("", _READ[0], "flat")),
    fitting=_fitting,
    formats=(FORMAT,),
    config=CONFIG,
    files=Files(
        Place("dcp", "__0_0.distcp", tree=_tree),
        single=(".metadata", "pytorch_model_fsdp_0/.metadata"),  # the second as Accelerate names it
        unread=(
            Unread(
                ".distcp",
                "holds .distcp files without their .metadata, which alone says what is in them",
                "It is written last: a save that was cut short lacks it",
                unless=".metadata",
            ),
        ),
        others=(r"\.metadata", r"__\d+_\d+\.distcp"),
    ),
)
