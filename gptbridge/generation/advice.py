"""What generate tells before it begins: what it was asked for and does not do, and what it uses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gptbridge.errors import UsageError
from gptbridge.weights.opening import Opened
from gptbridge_specs import RunSpec
from gptbridge_specs.generation import GenerationSpec
from gptbridge_specs.overrides import parse_override

# Fields that one strategy heeds, and what says that it is to be taken.
_FOR_ONE = {
    "sample": ("temperature", "top_k", "top_p", "top_p_rule", "min_p", "seed"),
    "beam": ("beams", "beam_groups", "diversity_penalty", "length_penalty", "early_stopping"),
}
_INSTEAD = {
    "greedy": "greedy takes the likeliest",
    "sample": "sample draws",
    "beam": "beam follows the likeliest",
}
_FOR_TRAINING = ("data", "optimizer", "schedule", "checkpoint", "evaluation")
_OF_TRAINING_HEEDED = ("device", "compile")


def advise(spec: RunSpec, overrides: Sequence[str]) -> Iterator[str]:
    """Yield what to warn of before texts are continued under `spec`, which `overrides` made."""
    for override in overrides:
        if reason := _unheeded(spec, *parse_override(override)[0]):
            yield f"-o {override} changes nothing: {reason}"


def length_advice(prompt: str, length: int, spec: GenerationSpec, window: int) -> str | None:
    """Return what to warn of a prompt of `length` tokens; UsageError where it cannot be continued so."""
    if spec.max_length is not None and length >= spec.max_length:
        raise UsageError(
            f"{prompt} has {length} tokens, and {spec.max_length} are allowed with its continuation",
            where="generation.max_length",
        )
    if length <= window:
        return None
    if spec.long_prompts == "refuse":
        raise UsageError(
            f"{prompt} has {length} tokens, and the model sees {window}",
            where="generation.long_prompts",
            hint="Shorten it, or say -o generation.long_prompts=window to let the model see its end",
        )
    return f"{prompt} has {length} tokens: the model sees the last {window} of them"


def parts_used(opened: Opened) -> Iterator[str]:
    """Yield what is done with the parts of a checkpoint beside a language model's weights."""
    if (adapter := opened.adapter) is not None:
        parts = ", ".join(adapter.targets)
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
    strategy = spec.generation.strategy
    for other, fields in _FOR_ONE.items():
        if section == "generation" and field in fields and strategy != other:
            return f"{_INSTEAD[strategy]}; -o generation.strategy={other} heeds it"
    return None
