"""What a run goes on from: the weights, the moments and the state of one of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from gptbridge.checkpoint.manifest import MANIFEST_FILE
from gptbridge.checkpoint.state import STATE_FILE, TrainingState, read_state
from gptbridge.checkpoint.tensor_files import open_tensors
from gptbridge.checkpoint.writing import MOMENTS_STEM
from gptbridge.errors import BadInput, UsageError
from gptbridge.files import require_regular_file
from gptbridge.session import MOMENTS, Kind
from gptbridge.weights.canonical.arrays import CanonicalArrays
from gptbridge.weights.opening import Opened, open_checkpoint
from gptbridge_specs import ModelSpec


@dataclass(frozen=True, slots=True)
class RunCheckpoint:
    """A checkpoint of a run. Arrays are read when they are asked for."""

    weights: Opened
    moments: Mapping[Kind, CanonicalArrays]  # exp_avg and exp_avg_sq; none for SGD
    state: TrainingState


def open_run_checkpoint(folder: Path, stack: ExitStack) -> RunCheckpoint:
    """Open what `locate` found, to go on from; `stack` closes it.

    BadInput for weights that no run wrote, for a classifier, for files that do not fit each other;
    UsageError for an adapter, which training would leave out.
    """
    if not (folder / STATE_FILE).exists():
        _refuse_weights_alone(folder)
    require_regular_file(folder / MANIFEST_FILE)
    weights = stack.enter_context(open_checkpoint(folder))
    weights.require_language_head()
    if weights.adapter is not None:
        raise UsageError(
            "an adapter lies beside the weights, and a resumed run would leave it out",
            where=folder,
            hint="Move it elsewhere, or add it to the weights: gptbridge convert --merge-lora",
        )
    state = read_state(folder)
    if _sized(state.spec.model) != _sized(weights.model):
        raise BadInput(f"another model than {weights.config_file} describes", where=folder / STATE_FILE)
    moments: Mapping[Kind, CanonicalArrays] = {}
    if state.spec.optimizer.name != "sgd":
        ends = {f".{kind}": kind for kind in MOMENTS}
        found = open_tensors(folder, MOMENTS_STEM, state.spec.model, stack, *ends)
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


def _sized(model: ModelSpec) -> ModelSpec:
    """Return a model that says its feed-forward width outright."""
    return model.model_copy(update={"ffn_hidden_size": model.ffn_size})
