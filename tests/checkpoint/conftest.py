"""Checkpoints of a small model, written by the code that a run uses, with no framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from gptbridge.checkpoint.state import TrainingState, state_after
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.checkpoint.writing import write_checkpoint
from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.session import Session, TrainerState
from gptbridge.testing.cases import moments, weights
from gptbridge_specs import RunSpec

Arrays = dict[str, NDArray[np.float32]]
TOKENIZER = load_tokenizer("byte")


class Exporter:
    """The exporting half of a session, over arrays that are at hand."""

    def __init__(self, weights: Arrays, moments: Arrays) -> None:
        self.weights, self.moments = weights, moments

    def export_weights(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        yield from self.weights.items()

    def export_optimizer(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        yield from self.moments.items()


def spec_of(**model: Any) -> RunSpec:
    sizes = {"hidden_size": 12, "num_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 16}
    return RunSpec.model_validate({"model": {**sizes, **model}, "training": {"seq_length": 16}})


def state_of(spec: RunSpec, step: int) -> TrainingState:
    session = TrainerState(updates=step)
    return state_after(step, spec, session, backend="torch", digest="d", tokenizer=TOKENIZER.identity)


def writer(spec: RunSpec, step: int) -> Callable[[Path], None]:
    """Return what CheckpointStore.save calls; weights and moments are seeded by `step`."""
    exporter = cast(Session, Exporter(weights(spec.model, step), moments(spec.model, step)))
    return partial(write_checkpoint, session=exporter, state=state_of(spec, step), tokenizer=TOKENIZER)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    """A run's checkpoints of steps 10 and 20."""
    store = CheckpointStore(tmp_path / "checkpoints")
    for step in (10, 20):
        store.save(step, writer(spec_of(), step))
    return store
