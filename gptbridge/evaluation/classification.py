"""What a classifier says of the records of a file, and how often it is right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.data.tokenizers.optional import require
from gptbridge.evaluation.recorded import MeasuredRecords, Reading, read_with
from gptbridge.evaluation.result import Measures
from gptbridge.evaluation.scoring import Progress
from gptbridge.files import write_lines
from gptbridge.finetuning.rows import class_names
from gptbridge.finetuning.table import RowTable, read_table
from gptbridge.session import LanguageModel
from gptbridge_specs import RunSpec

Tell = Callable[[str], None]
Measure = Callable[[NDArray[Any], NDArray[Any]], Measures]
_LENGTHS = 8  # of batches: every one may be compiled


def classify(reading: Reading, warn: Tell) -> MeasuredRecords:
    """Measure the classifier of `reading` on its records.

    Its predictions are a line each: the record's class, the one that the model says, its scores.
    """
    with read_with(reading, {"name": "classification"}, warn) as (spec, words, open_it):
        measure = _of_values() if spec.task.regression else _of_classes(class_names(spec))
        table = read_table(reading.data, spec, words, warn)
        with open_it() as model:
            scores = _scores(model, table, spec, reading.progress)
    truth = table.labels[table.offsets[1:] - 1]
    said = scores[:, 0] if spec.task.regression else scores.argmax(-1)
    if reading.predictions is not None:
        write_lines(Path(reading.predictions), _lines(truth, said, scores))
    found = measure(truth, said)
    return MeasuredRecords(found.measures, found.counts, spec.training.seq_length, words.identity)


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


def _of_classes(names: Sequence[str]) -> Measure:
    """Return what scikit-learn measures; of two classes, F1 is that of the second."""
    return partial(_classes, require("sklearn.metrics", "a classifier's measure", extra="metrics"), names)


def _classes(metrics: Any, names: Sequence[str], truth: NDArray[Any], said: NDArray[Any]) -> Measures:
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


def _of_values() -> Measure:
    """Return what measures the squared error and the correlations: None where either side is constant."""
    return partial(_values, require("scipy.stats", "a regression's measure", extra="metrics"))


def _values(stats: Any, truth: NDArray[Any], said: NDArray[Any]) -> Measures:
    varies = len(truth) > 1 and np.ptp(truth) > 0 and np.ptp(said) > 0
    measures: dict[str, float | None] = {"mean_squared_error": float(np.square(said - truth).mean())}
    for name in ("pearson", "spearman"):
        measures[name] = float(getattr(stats, f"{name}r")(truth, said).statistic) if varies else None
    return Measures(measures, {"records": len(truth)})


def _lines(truth: NDArray[Any], said: NDArray[Any], scores: NDArray[np.float32]) -> Iterator[str]:
    for label, guess, row in zip(truth, said, scores, strict=True):
        yield json.dumps(
            {"label": label.item(), "predicted": guess.item(), "scores": [float(x) for x in row]}
        )
