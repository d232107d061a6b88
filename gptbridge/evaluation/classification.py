"""What a classifier says of the records of a file, and how often it is right."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.checkpoint.locating import locate
from gptbridge.data.tokenizers.optional import require
from gptbridge.errors import BadInput
from gptbridge.evaluation.result import Measures
from gptbridge.evaluation.scoring import Progress
from gptbridge.files import write_synced
from gptbridge.finetuning.rows import class_names
from gptbridge.finetuning.table import RowTable, read_table
from gptbridge.plugins.backend import load_backend
from gptbridge.reading import Devices, open_model, reading_spec, run_state, trained_length
from gptbridge.session import LanguageModel
from gptbridge.weights.opening import Hints, Opened, open_checkpoint
from gptbridge_specs import RunSpec

Tell = Callable[[str], None]
_LENGTHS = 8  # of batches: every one may be compiled


@dataclass(frozen=True, slots=True)
class Classified:
    """What was measured, and with what."""

    found: Measures
    window: int
    tokenizer: str


def classify(
    checkpoint: Path,
    data: Path,
    *,
    backend: str,
    hints: Hints,
    tokenizer: str | None,
    window: int | None,
    batch_size: int,
    overrides: Sequence[str],
    predictions: str | Path | None,
    warn: Tell,
    progress: Progress,
    devices: Devices,
) -> Classified:
    """Measure the classifier in `checkpoint` on the records of `data`, read as its run read them.

    `overrides` say how to compute, and how to read: task.records. `predictions` is a file to write, a line of
    JSON for each record: its class, the one that the model says, its scores. BadInput for a model without
    classes, and for a bad record.
    """
    plugin = load_backend(backend)
    with open_checkpoint(locate(checkpoint, warn), hints) as opened:
        if opened.num_labels is None:
            raise BadInput("has no classes: it holds a language model", where=opened.path)
        words = opened.tokenizer(tokenizer)
        for message in (*opened.warnings, *opened.assumed):
            warn(message)
        spec = _spec(opened, window, batch_size, overrides, devices)
        table = read_table(data, spec, words, warn)
        with open_model(spec, plugin, opened, devices) as model:
            scores = _scores(model, table, spec, progress)
    truth = table.labels[table.offsets[1:] - 1]
    said = scores.argmax(-1)
    if predictions is not None:
        _write(Path(predictions), truth, said, scores)
    found = _measures(truth, said, class_names(spec))
    return Classified(found, spec.training.seq_length, words.identity)


def _spec(
    opened: Opened, window: int | None, batch_size: int, overrides: Sequence[str], devices: Devices
) -> RunSpec:
    """Return what to compute, and how the records are read: as the checkpoint's run did."""
    state = run_state(opened)
    task: dict[str, Any] = {"name": "classification", "num_labels": opened.num_labels}
    if state is not None:
        task["records"] = state.spec.task.records.model_dump()
    content = {
        "task": task,
        "training": {"seq_length": window or trained_length(opened, state), "global_batch_size": batch_size},
    }
    return reading_spec(opened.model, content, overrides, devices)


def _scores(model: LanguageModel, table: RowTable, spec: RunSpec, progress: Progress) -> NDArray[np.float32]:
    """Return the (N, C) scores of all rows, read in the order of their lengths."""
    size, whole = spec.training.global_batch_size, spec.training.seq_length
    step, order = -(-whole // _LENGTHS), np.argsort(table.lengths, kind="stable")
    scores = np.empty((len(table), spec.task.num_labels or 1), np.float32)
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        lengths = table.lengths[rows]
        tokens = np.zeros((len(rows), min(whole, -(-int(lengths.max()) // step) * step)), np.int32)
        for line, row, length in zip(tokens, rows, lengths, strict=True):
            line[:length] = table.inputs[table.offsets[row] : table.offsets[row + 1]]
        scores[rows] = model.logits(tokens, (lengths - 1)[:, None].astype(np.int32))[:, 0]
        progress(start + len(rows), len(order))
    return scores


def _measures(truth: NDArray[Any], said: NDArray[Any], names: Sequence[str]) -> Measures:
    """Return the measures of scikit-learn; of two classes, F1 is that of the second."""
    metrics = require("sklearn.metrics", "a classifier's measure", extra="metrics")
    average = "binary" if len(names) == 2 else "macro"
    matrix = metrics.confusion_matrix(truth, said, labels=range(len(names)))
    counts = {"records": len(truth)} | {
        f"of {name}": int(row.sum()) for name, row in zip(names, matrix, strict=True)
    }
    counts |= {
        f"{name} taken for {other}": int(matrix[n, m])
        for n, name in enumerate(names)
        for m, other in enumerate(names)
        if n != m and matrix[n, m]
    }
    measures = {
        "accuracy": float(metrics.accuracy_score(truth, said)),
        "f1" if average == "binary" else "f1_macro": float(
            metrics.f1_score(truth, said, average=average, labels=range(len(names)), zero_division=0)
        ),
        "matthews": float(metrics.matthews_corrcoef(truth, said)),
    }
    return Measures(measures, counts)


def _write(path: Path, truth: NDArray[Any], said: NDArray[Any], scores: NDArray[np.float32]) -> None:
    lines = [
        json.dumps({"label": int(label), "predicted": int(guess), "scores": [float(x) for x in row]})
        for label, guess, row in zip(truth, said, scores, strict=True)
    ]
    write_synced(path, ("\n".join(lines) + "\n").encode())
