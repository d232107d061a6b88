"""What generate tells before it begins: what it was asked for and does not do, and what it uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gptbridge.weights.canonical.lora import QKV
from gptbridge.weights.opening import Opened
from gptbridge_specs import RunSpec
from gptbridge_specs.overrides import parse_override

_DRAW = "generation.strategy=sample"
_FOR_DRAWING = ("temperature", "top_k", "top_p", "top_p_rule", "seed")
_FOR_TRAINING = ("data", "optimizer", "schedule", "checkpoint", "evaluation")
_OF_TRAINING_HEEDED = ("device", "compile")


def advise(
    spec: RunSpec, overrides: Sequence[str], contexts: Sequence[Sequence[int]], window: int
) -> list[str]:
    """Return what to warn of before `contexts` are continued under `spec`, which `overrides` made."""
    warnings = []
    for override in overrides:
        if reason := _unheeded(spec, *parse_override(override)[0]):
            warnings.append(f"-o {override} changes nothing: {reason}")
    for number, context in enumerate(contexts, start=1):
        if len(context) > window:
            warnings.append(
                f"prompt {number} has {len(context)} tokens: the model sees the last {window} of them"
            )
    return warnings


def parts_used(opened: Opened) -> Iterator[str]:
    """Yield what is done with the parts of a checkpoint beside a language model's weights."""
    if (adapter := opened.adapter) is not None:
        parts = ", ".join(QKV[part] for part in adapter.all_parts)
        yield (
            f"the LoRA beside the weights is added to them: rank {adapter.rank}, alpha {adapter.alpha:g}, "
            f"{parts} of {len(adapter.layers)} layers"
        )
    if opened.num_labels is not None:
        yield f"score.weight, a classifier's head of {opened.num_labels} classes, is not used"


def _unheeded(spec: RunSpec, section: str, field: str | None = None, *_: str) -> str | None:
    """Return why a field of the spec does not matter to generate; None where it does."""
    if section in _FOR_TRAINING or (section == "training" and field not in (None, *_OF_TRAINING_HEEDED)):
        return "it is for training"
    if section == "generation" and field in _FOR_DRAWING and spec.generation.strategy == "greedy":
        return f"greedy takes the likeliest; -o {_DRAW} draws"
    return None
