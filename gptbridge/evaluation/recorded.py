"""A checkpoint that is measured on the records of a file, which are read as its run read them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gptbridge.checkpoint.locating import locate
from gptbridge.data.tokenizers import Tokenizer
from gptbridge.errors import BadInput, UsageError
from gptbridge.evaluation.scoring import Progress
from gptbridge.evaluation.subject import require_heeded
from gptbridge.plugins.backend import load_backend
from gptbridge.reading import Devices, open_model, reading_spec, run_state, run_tokenizer, trained_length
from gptbridge.session import LanguageModel
from gptbridge.weights.opening import Hints, open_checkpoint
from gptbridge_specs import RunSpec

Tell = Callable[[str], None]
Open = Callable[[], AbstractContextManager[LanguageModel]]
_HEEDED = ("task.records", "generation")  # beside how to compute


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
    devices: Devices


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
    require_heeded(reading.overrides, *_HEEDED)
    if reading.predictions is not None:
        _require_new(Path(reading.predictions))
    plugin = load_backend(reading.backend)
    with open_checkpoint(locate(reading.checkpoint, warn), reading.hints) as opened:
        content: dict[str, Any] = {"task": dict(task)}
        if task["name"] != "classification":
            opened.require_language_head()
        elif opened.num_labels is None:
            raise BadInput("has no classes: it holds a language model", where=opened.path)
        else:
            content["task"]["num_labels"] = opened.num_labels
        state = run_state(opened)
        words = run_tokenizer(opened, state, reading.tokenizer)
        for message in (*opened.warnings, *opened.assumed):
            warn(message)
        if state is not None:
            content["task"]["records"] = state.spec.task.records.model_dump()
            content["generation"] = state.spec.generation.model_dump()
        length = reading.window or trained_length(opened, state)
        content["training"] = {"seq_length": length, "global_batch_size": reading.batch_size}
        spec = reading_spec(opened.model, content, reading.overrides, reading.devices)
        yield spec, words, partial(open_model, spec, plugin, opened, reading.devices)


def _require_new(path: Path) -> None:
    """Refuse, before the work, a file that is somebody's already, or that has no folder."""
    where = f"--predictions {path}"
    if os.path.lexists(path):
        raise UsageError("is there already", where=where, hint="Name a file that is not there")
    if not path.parent.is_dir():
        raise UsageError(f"there is no folder {path.parent}", where=where)
