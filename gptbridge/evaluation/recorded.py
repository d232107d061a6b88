"""A checkpoint that is measured on the records of a file, which are read as its run read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gptbridge.checkpoint.locating import locate
from gptbridge.data.tokenizers import Tokenizer
from gptbridge.errors import BadInput
from gptbridge.evaluation.scoring import Progress
from gptbridge.plugins.backend import load_backend
from gptbridge.reading import open_model, run_state, trained_length
from gptbridge.session import LanguageModel
from gptbridge.weights.opening import Hints, open_checkpoint
from gptbridge_specs import RunSpec
from gptbridge_specs.loading import build
from gptbridge_specs.overrides import apply_overrides

Tell = Callable[[str], None]
Open = Callable[[], AbstractContextManager[LanguageModel]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What is measured on what. `overrides` say how to compute, and how to read: task.records."""

    checkpoint: Path
    data: Path
    backend: str
    hints: Hints
    tokenizer: str | None
    window: int | None
    batch_size: int
    overrides: Sequence[str]
    predictions: str | Path | None  # a file to write, a line of JSON for each record
    progress: Progress


@dataclass(frozen=True, slots=True)
class MeasuredRecords:
    """What was measured, and with what."""

    measures: Mapping[str, float | None]
    counts: Mapping[str, int]
    window: int
    tokenizer: str


@contextmanager
def read_with(
    reading: Reading, task: Mapping[str, Any], warn: Tell
) -> Iterator[tuple[RunSpec, Tokenizer, Open]]:
    """Open the checkpoint for `task`; yield the spec, the tokenizer, and what opens the model.

    BadInput for a model that cannot do it: one with classes, or without.
    """
    plugin = load_backend(reading.backend)
    with open_checkpoint(locate(reading.checkpoint, warn), reading.hints) as opened:
        content: dict[str, Any] = {"model": opened.model.model_dump(), "task": dict(task)}
        if task["name"] != "classification":
            opened.require_language_head()
        elif opened.num_labels is None:
            raise BadInput("has no classes: it holds a language model", where=opened.path)
        else:
            content["task"]["num_labels"] = opened.num_labels
        words = opened.tokenizer(reading.tokenizer)
        for message in (*opened.warnings, *opened.assumed):
            warn(message)
        state = run_state(opened)
        if state is not None:
            content["task"]["records"] = state.spec.task.records.model_dump()
            content["generation"] = state.spec.generation.model_dump()
        length = reading.window or trained_length(opened, state)
        content["training"] = {"seq_length": length, "global_batch_size": reading.batch_size}
        spec = build(RunSpec, apply_overrides(content, reading.overrides))
        yield spec, words, partial(open_model, spec, plugin, opened.merged().read)
