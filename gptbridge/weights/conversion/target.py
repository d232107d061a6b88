"""What to write for a dialect: which files, and which box of which weight each tensor in them is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gptbridge.errors import UsageError
from gptbridge.weights.architecture import LORA_A, LORA_B, layer_of, parameters, shifted, template_of
from gptbridge.weights.architecture import sizes as letter_sizes
from gptbridge.weights.canonical.casting import joint_type
from gptbridge.weights.canonical.lora import Lora
from gptbridge.weights.configs.rows import Described
from gptbridge.weights.dialects.dialect import Dialect
from gptbridge.weights.dialects.files import Place
from gptbridge.weights.formats import TensorInfo, Tree
from gptbridge.weights.layouts.boxes import Box, sizes_of, whole_boxes
from gptbridge.weights.layouts.rules import Layout, NativeTensor
from gptbridge.weights.layouts.stored import StoredAxes
from gptbridge_specs import ModelSpec

_PADDING_UNIT = 128  # systems that cut the vocabulary pad it to a multiple of this x tensor ranks


@dataclass(frozen=True, slots=True)
class Split:
    """Over how many ranks the target is cut."""

    tensor: int = 1
    pipeline: int = 1

    @property
    def whole(self) -> bool:
        """One file holds everything."""
        return self.tensor == self.pipeline == 1


@dataclass(frozen=True, slots=True)
class Target:
    """What one conversion writes."""

    dialect: Dialect
    layout: Layout
    model: ModelSpec
    dtypes: Mapping[str, str]  # the element type of each canonical weight; those are written
    split: Split = field(default_factory=Split)
    num_labels: int | None = None  # of a classifier
    tokens: Mapping[str, int] = field(default_factory=dict)  # special tokens, by TOKEN_KEYS
    lora: Lora | None = None  # kept apart

    @property
    def name(self) -> str:
        """The dialect and its variant, for people."""
        return f"{self.dialect.name} ({self.layout.variant})"

    def config(self) -> dict[str, Any]:
        """Return the model's part of the dialect's configuration."""
        dtype = self.dtypes["wte.weight"]
        return self.dialect.config.write(
            Described(self.model, self.num_labels, self.tokens, dtype, self.lora)
        )


@dataclass(frozen=True, slots=True)
class TargetTensor:
    """A tensor to write: a box of each of the canonical weights that it joins, stored as `axes`.

    `cut` is the dimension that tensor parallelism cuts, if any.
    """

    info: TensorInfo
    canonicals: tuple[str, ...]
    boxes: tuple[Box, ...]
    axes: StoredAxes
    cut: int | None


@dataclass(frozen=True, slots=True)
class TargetFile:
    """A file to write, relative to the output folder, and the structure around its tensors, if it nests."""

    name: str
    format: str
    tensors: tuple[TargetTensor, ...]
    tree: Tree = None


def plan_files(target: Target) -> list[TargetFile]:
    """Return the files to write, those of a pipeline stage together.

    UsageError where the split cannot be, or the dialect has no place or word for a part of the model.
    """
    _check_places(target)
    target.config()  # refuses what the dialect's configuration has no word for
    place = target.dialect.files.place(target.layout.variant)
    _check_split(target, place)
    split = target.split
    sizes = {**letter_sizes(target.model), "c": target.num_labels or 1}
    if target.lora is not None:
        sizes["r"] = target.lora.rank
    files = []
    for stage in range(split.pipeline):
        natives = _stage_natives(target, stage)
        for rank in range(split.tensor):
            name = place.whole if split.whole or place.ranked is None else place.ranked(rank, stage, split)
            cuts = {axes: _cut(axes, sizes, rank, target) for axes in {native.axes for native in natives}}
            tensors = [_tensor(native, cuts[native.axes], target) for native in natives]
            tensors.sort(key=lambda tensor: -tensor.info.storage_dtype.itemsize)  # as safetensors has them
            tree = place.tree([tensor.info.name for tensor in tensors], target) if place.tree else None
            files.append(TargetFile(name, place.format, tuple(tensors), tree))
    return files


def _check_split(target: Target, place: Place) -> None:
    model, split = target.model, target.split
    if not split.whole and place.ranked is None:
        raise UsageError(
            f"{target.name} checkpoints are never split",
            hint="Leave out --tensor-parallel and --pipeline-parallel",
        )
    if model.num_layers % split.pipeline:
        raise UsageError(f"--pipeline-parallel {split.pipeline} does not divide {model.num_layers} layers")
    for size, what in (
        (model.num_attention_heads, "attention heads"),
        (model.ffn_size, "feed-forward width"),
    ):
        if size % split.tensor:
            raise UsageError(f"--tensor-parallel {split.tensor} does not divide {size} ({what})")
    if "v" in target.layout.cut and model.vocab_size % split.tensor:
        unit = _PADDING_UNIT * split.tensor
        padded = -(-model.vocab_size // unit) * unit
        raise UsageError(
            f"--tensor-parallel {split.tensor} does not divide the vocabulary of {model.vocab_size}",
            hint=f"Pad it: --vocab-size {padded}",
        )


def _check_places(target: Target) -> None:
    held = {name for rule in target.layout.rules for name in rule.canonical}
    where = target.name
    for name, what in (("lm_head.weight", "a head of its own"), ("score.weight", "a classifier's head")):
        if name in target.dtypes and name not in held:
            raise UsageError(f"the model has {what} ({name}), and {where} has no place for it")
    known = target.layout.activations
    if known and target.model.activation not in known:
        raise UsageError(
            f"the model computes {target.model.activation}, which {where} does not",
            allowed=" or ".join(known),
        )
    if target.lora is not None and not (holds_lora(target.layout) or target.dialect.adapters):
        raise UsageError(
            f"the checkpoint has LoRA beside its weights, and {where} has no place for it",
            hint="Add it to the weights: --merge-lora",
        )
    for name in target.lora.weights if target.lora is not None and holds_lora(target.layout) else ():
        if template_of(name) not in held:
            raise UsageError(
                f"LoRA changes {name.rpartition('.')[0]}, and {where} has no place for it",
                hint="Add it to the weights: --merge-lora",
            )


def holds_lora(layout: Layout) -> bool:
    """Tell whether a layout has names for LoRA."""
    return any(rule.canonical[0].endswith((LORA_A, LORA_B)) for rule in layout.rules)


def _stage_natives(target: Target, stage: int) -> list[NativeTensor]:
    """Return the tensors of a stage, with the model's own numbers of layers in their canonical names."""
    layout, stages = target.layout, target.split.pipeline
    share = target.model.num_layers // stages
    first = stage * share
    held = [name for name in _names(target) if stage == _stage_of(name, share, stages)]
    back = first if layout.layers_count_from_stage else 0
    if back:
        held = [shifted(name, -back) for name in held]
    listed = list(layout.natives(held, target.model.num_layers))
    if back:
        listed = [replace(x, canonicals=tuple(shifted(name, back) for name in x.canonicals)) for x in listed]
    if stages > 1 and stage == stages - 1 and target.model.tie_word_embeddings:
        rules = {rule.canonical: rule for rule in layout.rules}
        listed += [
            NativeTensor(native, (name,), rules[name,].axes) for name, native in layout.repeated_in_last_stage
        ]
    return listed


def _stage_of(name: str, share: int, stages: int) -> int:
    layer = layer_of(name)
    if layer is not None:
        return layer // share
    return 0 if name.startswith("w") else stages - 1


def _names(target: Target) -> list[str]:
    """Return the canonical weights to write into the dialect's own files."""
    known = [parameter.name for parameter in parameters(target.model)]
    names = [name for name in (*known, "score.weight") if name in target.dtypes]
    if target.lora is not None and holds_lora(target.layout):
        names += target.lora.names
    return names


def _cut(
    axes: StoredAxes, sizes: Mapping[str, int], rank: int, target: Target
) -> tuple[tuple[Box, ...], int | None, tuple[int, ...]]:
    """Return what a rank has of tensors of these axes: boxes, the dimension that is cut, and the shape."""
    boxes = whole_boxes(axes, sizes)
    letter = next((letter for letter in axes.parts[0].letters if letter in target.layout.cut), None)
    cut = None
    if letter is not None and target.split.tensor > 1:
        share = sizes[letter] // target.split.tensor
        boxes = tuple({**box, letter: (rank * share, (rank + 1) * share)} for box in boxes)
        cut = axes.dim_of(letter)
    return boxes, cut, axes.shape(sizes_of(*boxes))


def _tensor(
    native: NativeTensor, held: tuple[tuple[Box, ...], int | None, tuple[int, ...]], target: Target
) -> TargetTensor:
    boxes, cut, shape = held
    dtype = joint_type(native.name, {name: target.dtypes[name] for name in native.canonicals})
    info = TensorInfo(native.name, dtype, shape)
    return TargetTensor(info, native.canonicals, boxes, native.axes, cut)
