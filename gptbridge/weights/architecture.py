"""The architecture, said once: every weight of a GPT with its axes, initial value, decay and place.

Names, shapes, counts, FLOPs, initial values, weight decay, what is trained, how tensor parallelism cuts a
weight and in which pipeline stage it lies are all read from the tables here. The grain is the finest:
q, k and v apart; that a file or a backend keeps them in one matrix is its layout's affair.
Axes are those of `gptbridge.weights.layouts.axes`: linear weights are (in, out). Query heads count as
(m g), m key/value heads with g query heads each; in the models of today g is 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from gptbridge.process.place import share
from gptbridge.weights.layouts.axes import Axes, axes
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import OptimizerSpec, TaskSpec

Initial = Literal["normal", "residual", "zeros", "ones"]
Part = Literal["embedding", "block", "head"]

QKV = ("attn.q", "attn.k", "attn.v")
LORA_A, LORA_B = ".lora_a", ".lora_b"
_LAYER = re.compile(r"h\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One weight of the model.

    `part` places it among pipeline stages: embeddings in the first, the head and the norm before it in
    the last, a block in the stage of its layer.
    """

    name: str  # "h.3.attn.q.weight"
    axes: Axes  # "i (m g d)"
    initial: Initial
    decay: bool  # takes weight decay by default: matrices and embeddings do
    part: Part
    trainable: bool = True

    @property
    def layer(self) -> int | None:
        """The layer that a block's weight belongs to."""
        return layer_of(self.name)


# name, axes, initial value, place; a weight of more than one dimension decays.
_EMBEDDINGS: tuple[tuple[str, str, Initial, Part], ...] = (
    ("wte.weight", "v i", "normal", "embedding"),
    ("wpe.weight", "t i", "normal", "embedding"),
)
_BLOCK: tuple[tuple[str, str, Initial, Part], ...] = (
    ("ln_1.weight", "i", "ones", "block"),
    ("ln_1.bias", "i", "zeros", "block"),
    ("attn.q.weight", "i (m g d)", "normal", "block"),
    ("attn.k.weight", "i (m d)", "normal", "block"),
    ("attn.v.weight", "i (m d)", "normal", "block"),
    ("attn.q.bias", "(m g d)", "zeros", "block"),
    ("attn.k.bias", "(m d)", "zeros", "block"),
    ("attn.v.bias", "(m d)", "zeros", "block"),
    ("attn.c_proj.weight", "(m g d) o", "residual", "block"),
    ("attn.c_proj.bias", "o", "zeros", "block"),
    ("ln_2.weight", "i", "ones", "block"),
    ("ln_2.bias", "i", "zeros", "block"),
    ("mlp.c_fc.weight", "i f", "normal", "block"),
    ("mlp.c_fc.bias", "f", "zeros", "block"),
    ("mlp.c_proj.weight", "f o", "residual", "block"),
    ("mlp.c_proj.bias", "o", "zeros", "block"),
)
_FINAL: tuple[tuple[str, str, Initial, Part], ...] = (
    ("ln_f.weight", "i", "ones", "head"),
    ("ln_f.bias", "i", "zeros", "head"),
)
_LM_HEAD: tuple[str, str, Initial, Part] = ("lm_head.weight", "v i", "normal", "head")
_CLASSIFIER: tuple[str, str, Initial, Part] = ("score.weight", "c i", "normal", "head")

# What LoraSpec.targets calls a linear layer of a block.
LORA_TARGETS = {
    "q": "attn.q",
    "k": "attn.k",
    "v": "attn.v",
    "out": "attn.c_proj",
    "fc": "mlp.c_fc",
    "proj": "mlp.c_proj",
}


def _parameter(row: tuple[str, str, Initial, Part]) -> Parameter:
    name, order, initial, part = row
    letters = axes(order)
    return Parameter(name, letters, initial, len(letters.groups) > 1, part)


def _adapters(target: str) -> tuple[Parameter, Parameter]:
    """Return the LoRA factors of one linear layer, (rank, in) and (out, rank): W + scaling (B A)^T."""
    weight = _ROWS[f"{target}.weight"]
    into, out = weight.axes.groups
    a = replace(weight, name=target + LORA_A, axes=Axes(("r", into)), initial="normal")
    return a, replace(a, name=target + LORA_B, axes=Axes((out, "r")), initial="zeros")


_ROWS = {row[0]: _parameter(row) for row in (*_EMBEDDINGS, *_BLOCK, *_FINAL, _LM_HEAD, _CLASSIFIER)}
_ROWS |= {factor.name: factor for target in LORA_TARGETS.values() for factor in _adapters(target)}
BLOCK = tuple(row[0] for row in _BLOCK)  # a layer's weights, without `h.N.`
TOP = tuple(row[0] for row in (*_EMBEDDINGS, *_FINAL))  # the weights outside the layers that all models have


def layer_of(name: str) -> int | None:
    """Return the number of the layer that the weight `name` belongs to, None outside the layers."""
    found = _LAYER.match(name)
    return int(found[1]) if found else None


def shifted(name: str, layers: int) -> str:
    """Return the name of the weight that `name` is, `layers` layers on."""
    layer = layer_of(name)
    return name if layer is None else f"h.{layer + layers}.{_LAYER.sub('', name, count=1)}"


def template_of(name: str) -> str:
    """Return the name with {} for the number of its layer, if it has one."""
    return _LAYER.sub("h.{}.", name, count=1)


def weight_axes(name: str) -> Axes:
    """Return the axes of a weight by its name, such as `h.3.attn.q.weight`; KeyError for an unknown one."""
    return _ROWS[_LAYER.sub("", name, count=1)].axes


def head(model: ModelSpec, task: TaskSpec | None = None) -> tuple[Parameter, ...]:
    """Return the output projection, if it is a weight of its own."""
    if task is not None and task.name == "classification":
        return (_ROWS["score.weight"],)
    return () if model.tie_word_embeddings else (_ROWS["lm_head.weight"],)


def outputs(model: ModelSpec, task: TaskSpec | None = None) -> int:
    """Return how many rows the output projection has: the vocabulary's, or a classifier's classes."""
    if task is not None and task.name == "classification":
        return task.num_labels or 1
    return model.vocab_size


def parameters(model: ModelSpec, task: TaskSpec | None = None) -> list[Parameter]:
    """Return every weight of `model` for `task` (None: language modeling), from the input to the output.

    With LoRA the model's own weights are not trained, and each adapter follows the weight it changes.
    """
    lora = task.lora if task is not None else None
    targets = {LORA_TARGETS[name] for name in lora.targets} if lora else set()
    block: list[Parameter] = []
    for name in BLOCK:
        block.append(_ROWS[name])
        layer, _, kind = name.rpartition(".")
        if kind == "weight" and layer in targets:
            block += [_ROWS[layer + LORA_A], _ROWS[layer + LORA_B]]
    table = [_ROWS[row[0]] for row in _EMBEDDINGS]
    table += [replace(p, name=f"h.{n}.{p.name}") for n in range(model.num_layers) for p in block]
    table += [_ROWS[row[0]] for row in _FINAL]
    table += head(model, task)
    if lora is None:
        return table
    return [
        replace(p, trainable=p.name.endswith((LORA_A, LORA_B)) or p.name == "score.weight") for p in table
    ]


def sizes(model: ModelSpec, task: TaskSpec | None = None) -> dict[str, int]:
    """Return how many entries each letter has in `model`."""
    lora = task.lora if task is not None else None
    return {
        "i": model.hidden_size,
        "o": model.hidden_size,
        "m": model.num_attention_heads,
        "g": 1,
        "d": model.head_size,
        "f": model.ffn_size,
        "v": model.vocab_size,
        "t": model.max_position_embeddings,
        "c": (task.num_labels if task is not None else None) or 1,
        "r": lora.rank if lora else 1,
    }


def shapes(model: ModelSpec, task: TaskSpec | None = None) -> dict[str, tuple[int, ...]]:
    """Return the canonical shape of every weight by name."""
    letters = sizes(model, task)
    return {p.name: p.axes.shape(letters) for p in parameters(model, task)}


def count_parameters(model: ModelSpec, task: TaskSpec | None = None, *, trained: bool = False) -> int:
    """Return how many numbers `model` has, or of them are `trained`, the tied embedding counted once."""
    letters = sizes(model, task)
    held = (p for p in parameters(model, task) if p.trainable or not trained)
    return sum(math.prod(p.axes.shape(letters)) for p in held)


def flops_per_token(model: ModelSpec, seq_length: int) -> int:
    """Return forward and backward FLOPs of one token: 6N + 12LhT (Chowdhery et al., PaLM, appendix B).

    N counts what a token is multiplied with: the matrices of the blocks and the output projection.
    """
    letters = sizes(model)
    matrices = sum(
        math.prod(p.axes.shape(letters)) for p in parameters(model) if p.part == "block" and p.decay
    )
    projection = model.vocab_size * model.hidden_size
    return 6 * (matrices + projection) + 12 * model.num_layers * model.hidden_size * seq_length


def weight_decay(parameter: Parameter, optimizer: OptimizerSpec) -> float:
    """Return the decoupled decay of one weight: what it loses in a step is this x the learning rate."""
    return optimizer.weight_decay if parameter.decay or optimizer.decay == "all" else 0.0


def tensor_slice(
    letters: Axes, whole: Mapping[str, int], rank: int, degree: int
) -> dict[str, tuple[int, int]]:
    """Return the box of a weight that tensor rank `rank` of `degree` holds: [start, stop) of each letter.

    A weight is cut along its heads, feed-forward width or vocabulary; one that has none of them is whole
    on every rank. Parts differ by one entry at most: nothing is padded.
    """
    box = {letter: (0, whole[letter]) for letter in letters.letters}
    if letters.cut is not None:
        box[letters.cut] = share(whole[letters.cut], degree, rank)
    return box
