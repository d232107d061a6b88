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
from gptbridge.weights.formats.dcp import FORMAT, METADATA_FILE
from gptbridge.weights.layouts.amid_training import amid_training, prefix_of_model
from gptbridge.weights.layouts.rules import Layout

if TYPE_CHECKING:
    from gptbridge.weights.conversion.target import Target

_LM_HEAD_MODEL, _MODEL_ALONE = variant("dcp", "flat", "transformer."), variant("dcp", "flat alone", "")
_MODEL, _HEAD, _TABLE = "model.", "lm_head.weight", "transformer.wte.weight"


def _found(layout: Layout, weights: WeightFile) -> Layout:
    """Return a layout as `weights` has it, called after what leads to its names."""
    prefix = prefix_of_model(layout, weights.tensors, weights.path)
    name = layout.variant.replace("flat", prefix.rstrip(".") or "flat")
    return replace(amid_training(layout, prefix), variant=name)


def _fitting(weights: WeightFile) -> tuple[Layout, ...]:
    return _found(_LM_HEAD_MODEL, weights), _found(_MODEL_ALONE, weights)


_PREFIXES = {"model": _MODEL}  # of the names below which a variant has its tensors


def _tree(names: Sequence[str], target: Target) -> Tree:
    """Return the state dict, which has a tied head under both of its names."""
    prefix = _PREFIXES.get(target.layout.variant, "")
    inner: dict[str, Tree] = {name.removeprefix(prefix): TensorRef(name) for name in names}
    if target.model.tie_word_embeddings:
        inner[_HEAD] = TensorRef(prefix + _TABLE)
    tree: dict[Any, Tree] = {**inner}
    return {_MODEL.rstrip("."): tree} if prefix else tree


_IN_MODEL = replace(
    _LM_HEAD_MODEL,
    variant="model",
    rules=tuple(replace(rule, native=_MODEL + rule.native) for rule in _LM_HEAD_MODEL.rules),
)
DIALECT = Dialect(
    "dcp",
    preference=5,
    layouts=(_IN_MODEL, _LM_HEAD_MODEL),
    fitting=_fitting,
    formats=(FORMAT,),
    config=CONFIG,
    files=Files(
        Place("dcp", METADATA_FILE, tree=_tree),
        single=(
            METADATA_FILE,
            f"pytorch_model_fsdp_0/{METADATA_FILE}",  # as Accelerate names it
            "shard-00001-model-*.safetensors",  # as torch's HuggingFaceStorageWriter does
        ),
        unread=(
            Unread(
                r".*\.distcp",
                "holds .distcp files without their .metadata, which alone says what is in them",
                "It is written last: a save that was cut short lacks it",
                unless=METADATA_FILE,
            ),
        ),
        others=(r"__\d+_\d+\.distcp",),
    ),
    same_names=("torch", "gptbridge", "nanogpt"),
)
