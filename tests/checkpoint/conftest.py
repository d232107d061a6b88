"""Checkpoints of a small model, written by the code that a run uses, with no framework."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gptbridge.checkpoint.locating import locate
from gptbridge.checkpoint.resuming import RunCheckpoint, open_run_checkpoint
from gptbridge.checkpoint.state import TrainingState, state_after
from gptbridge.checkpoint.store import CheckpointStore
from gptbridge.checkpoint.writing import Content
from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.session import MOMENTS, Kind, Shard, TrainerState
from gptbridge.testing.cases import moments, weights
from gptbridge.weights.architecture import parameters, sizes
from gptbridge.weights.layouts.arrays import Read
from gptbridge.weights.shards import Array, from_arrays
from gptbridge_specs import ModelSpec, RunSpec

TOKENIZER = load_tokenizer("byte")


def spec_of(**model: Any) -> RunSpec:
    sizes = {"hidden_size": 12, "num_layers": 2, "num_attention_heads": 3, "max_position_embeddings": 16}
    return RunSpec.model_validate({"model": {**sizes, **model}, "training": {"seq_length": 16}})


def state_of(spec: RunSpec, step: int) -> TrainingState:
    session = TrainerState(updates=step)
    return state_after(step, spec, session, backend="torch", digest="d", tokenizer=TOKENIZER.identity)


def whole_shards(model: ModelSpec, read: Read) -> list[Shard]:
    """Return every tensor of a model as one process has it."""
    found = []
    for parameter in parameters(model):
        box = {letter: (0, sizes(model)[letter]) for letter in parameter.axes.letters}
        content = partial(read, parameter.name, box)
        found.append(Shard(parameter.name, parameter.axes, box, owned=True, read=content, write=_refuse))
    return found


def _refuse(array: Array) -> None:
    raise AssertionError


def content_of(spec: RunSpec, step: int, tensors: Mapping[Kind, Read]) -> Content:
    shards = {kind: whole_shards(spec.model, read) for kind, read in tensors.items()}
    return Content(state_of(spec, step), TOKENIZER, shards)


def reads_of(spec: RunSpec, step: int) -> dict[Kind, Read]:
    """Return how the weights and moments are read that are seeded by `step`."""
    arrays = moments(spec.model, step)
    found: dict[Kind, Read] = {"weight": from_arrays(spec.model, weights(spec.model, step))}
    for kind in MOMENTS:
        end = f".{kind}"
        named = {name.removesuffix(end): array for name, array in arrays.items() if name.endswith(end)}
        found[kind] = from_arrays(spec.model, named)
    return found


def writer(spec: RunSpec, step: int) -> Callable[[Path], None]:
    """Return what CheckpointStore.save calls; weights and moments are seeded by `step`."""
    content = content_of(spec, step, reads_of(spec, step))

    def write(folder: Path) -> None:
        content.create(folder)
        content.write_tensors(folder)

    return write


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
