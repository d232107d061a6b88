"""Checkpoints of a small model, written by the code that a run uses, with no framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gptbridge.checkpoint.locating import locate
from gptbridge.checkpoint.resuming import RunCheckpoint, open_run_checkpoint
from gptbridge.checkpoint.state import TrainingState, state_after
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.checkpoint.writing import write_checkpoint
from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.session import MOMENTS, TrainerState
from gptbridge.testing.cases import moments, weights
from gptbridge.weights.shards import from_arrays
from gptbridge_specs import RunSpec

TOKENIZER = load_tokenizer("byte")


def spec_of(**model: Any) -> RunSpec:
    sizes = {"hidden_size": 12, "num_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 16}
    return RunSpec.model_validate({"model": {**sizes, **model}, "training": {"seq_length": 16}})


def state_of(spec: RunSpec, step: int) -> TrainingState:
    session = TrainerState(updates=step)
    return state_after(step, spec, session, backend="torch", digest="d", tokenizer=TOKENIZER.identity)


def writer(spec: RunSpec, step: int) -> Callable[[Path], None]:
    """Return what CheckpointStore.save calls; weights and moments are seeded by `step`."""
    arrays = moments(spec.model, step)
    by_kind = {
        kind: {name.removesuffix(f".{kind}"): array for name, array in arrays.items() if name.endswith(kind)}
        for kind in MOMENTS
    }
    return partial(
        write_checkpoint,
        weights=from_arrays(spec.model, weights(spec.model, step)),
        moments={kind: from_arrays(spec.model, named) for kind, named in by_kind.items()},
        state=state_of(spec, step),
        tokenizer=TOKENIZER,
    )


@contextmanager
def opened_run(path: Path) -> Iterator[RunCheckpoint]:
    """Open the checkpoint at `path`, which is whole, as a resumed run does."""
    with ExitStack() as stack:
        yield open_run_checkpoint(locate(path, pytest.fail), stack)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """A run's checkpoints of steps 10 and 20."""
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (10, 20):
        store.save(step, writer(spec_of(), step))
    return store
