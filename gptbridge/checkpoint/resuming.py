"""What a run goes on from: the weights, the moments and the state of one of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptbridge.checkpoint.locating import locate
from gptbridge.checkpoint.manifest import MANIFEST_FILE
from gptbridge.checkpoint.state import STATE_FILE, Origin, TrainingState, read_state
from gptbridge.checkpoint.tensor_files import open_tensors
from gptbridge.checkpoint.writing import MOMENTS_STEM
from gptbridge.errors import BadInput, UsageError
from gptbridge.files import require_regular_file
from gptbridge.session import MOMENTS, Kind
from gptbridge.weights.canonical.arrays import CanonicalArrays
from gptbridge.weights.conversion.facts import digest
from gptbridge.weights.opening import Hints, Opened, open_checkpoint
from gptbridge_specs import ModelSpec
from gptbridge_specs.run import TaskSpec


@dataclass(frozen=True, slots=True)
class RunCheckpoint:
    """A checkpoint of a run. Arrays are read when they are asked for."""

    weights: Opened
    moments: Mapping[Kind, CanonicalArrays]  # exp_avg and exp_avg_sq; none for SGD
    state: TrainingState


def open_run_checkpoint(folder: Path, stack: ExitStack, base: Path | None = None) -> RunCheckpoint:
    """Open what `locate` found, to go on from; `stack` closes it.

    Of a run that trains adapters, the base model is opened with them: `base`, or the one that they name.
    BadInput for weights that no run wrote, for files that do not fit each other; UsageError for an adapter
    that training would leave out.
    """
    if not (folder / STATE_FILE).exists():
        _refuse_weights_alone(folder)
    require_regular_file(folder / MANIFEST_FILE)
    state = read_state(folder)
    task = state.spec.task
    named = locate(base, lambda message: None) if base is not None and task.lora is not None else None
    weights = stack.enter_context(open_checkpoint(folder, Hints(base=named)))
    if task.name != "classification":
        weights.require_language_head()
    if weights.adapter is not None and task.lora is None:
        raise UsageError(
            "an adapter lies beside the weights, and a resumed run would leave it out",
            where=folder,
            hint="Move it elsewhere, or add it to the weights: gptbridge convert --merge-lora",
        )
    if _sized(state.spec.model, task) != _sized(weights.model, task):
        raise BadInput(f"another model than {weights.config_file} describes", where=folder / STATE_FILE)
    if task.lora is not None:
        require_base(weights.base, state.origin)
    moments: Mapping[Kind, CanonicalArrays] = {}
    if state.spec.optimizer.name != "sgd":
        ends = {f".{kind}": kind for kind in MOMENTS}
        found = open_tensors(folder, MOMENTS_STEM, state.spec.model, stack, *ends, task=task)
        moments = {kind: found[end] for end, kind in ends.items()}
    return RunCheckpoint(weights, moments, state)


def _refuse_weights_alone(folder: Path) -> None:
    """Refuse a checkpoint that no run wrote; a classifier by that name."""
    with suppress(UsageError), open_checkpoint(folder) as opened:
        opened.require_language_head()
    raise BadInput(
        f"has no {STATE_FILE}: it holds weights, not a run",
        where=folder,
        allowed="a checkpoint of a run",
        hint="gptbridge train --init-from begins a run with its weights",
    )


def _sized(model: ModelSpec, task: TaskSpec) -> ModelSpec:
    """Return a model that says its feed-forward width outright, without what a run may have otherwise.

    That is, for adapters, what training alone uses; for a classifier, whether the head is the embedding.
    """
    fields: dict[str, Any] = {"ffn_hidden_size": model.ffn_size}
    if task.lora is not None:
        fields |= {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0, "initializer_range": 1}
    if task.name == "classification":
        fields["tie_word_embeddings"] = True
    return model.model_copy(update=fields)


def require_base(base: Path | None, origin: Origin | None) -> None:
    """Refuse another base model than adapters were trained beside."""
    if base is None or origin is None:
        return
    with open_checkpoint(base) as opened:
        if f"sha256:{digest(opened)}" != origin.digest:
            raise BadInput(
                "is not the base model that the adapters were trained beside",
                where=base,
                allowed=f"weights of {origin.digest[:19]}",
            )
