"""What may change when a run is resumed, and what may not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gptbridge.checkpoint.state import TrainingState
from gptbridge.errors import UsageError
from gptbridge.rules.dropout import drops_out
from gptbridge_specs import RunSpec

# A field or a whole section -> what its change means for the numbers of the steps to come. A field
# that is not here may not change: it decides the model, the samples or the random numbers.
FREE, CHANGES_THE_CURVE = "free", "changes the curve"
MAY_CHANGE = {
    "training.stop_after_steps": FREE,
    "training.max_minutes": FREE,
    "training.device": FREE,
    "training.recompute": FREE,
    "training.compile": FREE,
    "training.log_interval": FREE,
    "training.new_positions": FREE,  # of a run that begins
    "training.micro_batch_size": FREE,  # what it and the layout come to is compared instead
    "data.path": FREE,  # the content is compared instead
    "data.validation_path": FREE,
    "task.records": FREE,  # what they come to is compared instead
    "data.tokenizer": FREE,  # the identity is compared instead
    "parallel": FREE,
    "checkpoint": FREE,
    "evaluation": FREE,
    "generation": FREE,
    "training.epochs": CHANGES_THE_CURVE,
    "training.max_steps": CHANGES_THE_CURVE,
    "schedule": CHANGES_THE_CURVE,
    "precision": CHANGES_THE_CURVE,
    "optimizer.beta1": CHANGES_THE_CURVE,
    "optimizer.beta2": CHANGES_THE_CURVE,
    "optimizer.epsilon": CHANGES_THE_CURVE,
    "optimizer.weight_decay": CHANGES_THE_CURVE,
    "optimizer.decay": CHANGES_THE_CURVE,
    "optimizer.clip_grad_norm": CHANGES_THE_CURVE,
    "model.hidden_dropout_prob": CHANGES_THE_CURVE,
    "model.attention_probs_dropout_prob": CHANGES_THE_CURVE,
}


@dataclass(frozen=True, slots=True)
class Change:
    """One field with another value than the checkpoint was trained with."""

    field: str
    before: Any
    now: Any

    @property
    def meaning(self) -> str | None:
        """What MAY_CHANGE says of the field or a section that it is in; None: it may not change."""
        place = self.field
        while place and place not in MAY_CHANGE:
            place = place.rpartition(".")[0]
        return MAY_CHANGE.get(place)

    def __str__(self) -> str:
        return f"{self.field}: {self.now}, the checkpoint has {self.before}"


def changes(before: RunSpec, now: RunSpec) -> list[Change]:
    """Return every field in which two specs differ."""
    old = dict(_fields(before.model_dump(mode="json")))
    new = dict(_fields(now.model_dump(mode="json")))
    names = {**old, **new}
    return [Change(n, old.get(n), new.get(n)) for n in names if old.get(n) != new.get(n)]


def allow_resume(state: TrainingState, spec: RunSpec, *, digest: str, tokenizer: str) -> list[str]:
    """Return what to warn of when `spec` continues from `state`, on data of `digest`.

    UsageError with a line for each change that is not allowed, naming the field and both values.
    """
    found = changes(state.spec, spec)
    refused = [str(change) for change in found if change.meaning is None]
    if digest != state.data.digest:
        refused.append(str(Change("data.path", _short(state.data.digest), f"content {_short(digest)}")))
    if tokenizer != state.data.tokenizer:
        refused.append(
            str(Change("data.tokenizer", _short(state.data.tokenizer), f"identity {_short(tokenizer)}"))
        )
    if spec.training.max_steps < state.step:
        refused.append(f"training.max_steps: {spec.training.max_steps}, the checkpoint is at {state.step}")
    if refused:
        refused[-1] += ". A resumed run keeps these: leave them out of -o and leave SPEC away"
        raise UsageError("\n".join(refused))
    curve = [c for c in found if c.meaning == CHANGES_THE_CURVE and not _is_harmless(c, spec)]
    micro = Change("training.micro_batch_size", state.spec.micro_batch_size, spec.micro_batch_size)
    if micro.now != micro.before and drops_out(spec.model, spec.task):
        curve.append(micro)  # it decides which samples share a dropout
    return [f"changed on resume, so the curve differs from an uninterrupted run's: {c}" for c in curve]


def _is_harmless(change: Change, spec: RunSpec) -> bool:
    """Tell whether a change leaves the curve as it is in this run.

    With a schedule that has its own length, more steps only make the run longer.
    """
    schedule = spec.schedule
    endless = schedule.name in ("noam", "constant") and schedule.warmup_steps is not None
    return change.field == "training.max_steps" and (schedule.decay_steps is not None or endless)


def _fields(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, dict):
            yield from _fields(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _short(digest: str) -> str:
    return digest[:12]
