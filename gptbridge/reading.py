"""A checkpoint that is read and not trained: at which length it was, and its model open on a backend."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

from gptbridge.checkpoint.state import TrainingState, is_of_a_run, read_state
from gptbridge.data.tokenizers import Tokenizer
from gptbridge.errors import BadInput
from gptbridge.plan.fitting import require_room_to_open
from gptbridge.plugins.backend import Backend
from gptbridge.session import LanguageModel
from gptbridge.weights.layouts.arrays import Read
from gptbridge.weights.opening import Opened
from gptbridge.weights.shards import load
from gptbridge_specs import RunSpec


def run_state(opened: Opened) -> TrainingState | None:
    """Return what the run that wrote a checkpoint says of itself; None for one of no run."""
    return read_state(opened.folder) if is_of_a_run(opened.folder) else None


def trained_length(opened: Opened, state: TrainingState | None) -> int:
    """Return the tokens of a sample in training, or all the model's positions where no run says it."""
    return opened.model.max_position_embeddings if state is None else state.spec.training.seq_length


def run_tokenizer(opened: Opened, state: TrainingState | None, named: str | None) -> Tokenizer:
    """Return the tokenizer `named`, or whose files lie in the folder; BadInput for one not the run's."""
    tokenizer = opened.tokenizer(named)
    if state is not None and state.data.tokenizer != tokenizer.identity:
        raise BadInput(
            f"is not the tokenizer that the run was trained with: {tokenizer.identity[:16]}, "
            f"not {state.data.tokenizer[:16]}",
            where=named or opened.folder,
        )
    return tokenizer


@contextmanager
def open_model(spec: RunSpec, backend: Backend, read: Read) -> Iterator[LanguageModel]:
    """Open the model of `spec` on `backend` with the weights that `read` has; close it in the end.

    UsageError, before the framework is loaded, where the memory at hand does not hold it.
    """
    require_room_to_open(spec, backend.info)
    with closing(backend.open_model(spec)) as model:
        load(model.shards(), read)
        yield model
