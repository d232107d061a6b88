"""MindRecord in the schemas of MindFormers' two scripts: text to pretrain on, and texts with classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.data.dataset import open_dataset
from gptbridge.data.mindrecord_writer import write_mindrecord
from gptbridge.data.prepare import TextOptions, prepare
from gptbridge.data.tokenizers import load_tokenizer
from gptbridge.errors import BadInput, Interrupted, UsageError
from gptbridge.finetuning.lines import LABELS
from gptbridge.finetuning.table import read_table
from gptbridge_specs.loading import build
from gptbridge_specs.run import RunSpec

Fields = Mapping[str, NDArray[Any] | list[int]]


def write_text(
    inputs: list[str], tokenizer: str, output: Path, length: int, options: TextOptions, **how: Any
) -> int:
    """Write rows of `length` tokens, which follow one another in the text; return their number.

    What is left of the text after the last whole row is not written. `how` and errors as `prepare` has them.
    """

    def rows() -> Iterator[Fields]:
        with TemporaryDirectory(dir=output.parent) as folder:
            prefix = Path(folder) / "text"
            try:
                prepare(inputs, tokenizer, prefix, options, **how)
            except Interrupted as stop:  # what it kept goes with the folder
                raise Interrupted("stopped; nothing is kept", exit_code=stop.exit_code) from stop
            dataset = open_dataset(str(prefix))
            if dataset.tokens < length:
                raise BadInput(f"{dataset.tokens} tokens are less than one row of {length}", where=inputs[0])
            for start in range(0, dataset.tokens - length + 1, length):
                ids = dataset.source.read(start, start + length)
                yield {"input_ids": ids, "attention_mask": [1] * length, "labels": ids}

    return write_mindrecord(output, rows(), "lm-schema")


def write_classes(
    data: Path,
    tokenizer: str,
    output: Path,
    length: int,
    records: Mapping[str, Any],
    num_labels: int | None,
    warn: Callable[[str], None],
) -> int:
    """Write a row of `length` tokens for each record; return their number.

    It is padded with end-of-text under a mask of 0; a longer text is cut. `records` are fields of
    task.records: format, skip_bad. BadInput for a bad record.
    """
    words = load_tokenizer(tokenizer)
    padding = words.end_of_text
    if padding is None:
        raise UsageError("this tokenizer has no end-of-text token to pad with", where=tokenizer)
    classes = num_labels or len(LABELS.get(records["format"], ())) or 2
    task = {"name": "classification", "num_labels": classes, "records": {**records, "too_long": "cut"}}
    model = {"vocab_size": words.vocab_size, "max_position_embeddings": length}
    spec = build(RunSpec, {"model": model, "task": task, "training": {"seq_length": length}})
    if spec.task.regression:
        raise UsageError("the schema has whole numbers alone", where="--records", allowed="classes")

    def rows() -> Iterator[Fields]:
        table = read_table(data, spec, words, warn)
        for begin, end in pairwise(table.offsets.tolist()):
            ids, rest = table.inputs[begin:end], length - (end - begin)
            yield {
                "input_ids": np.pad(ids, (0, rest), constant_values=padding),
                "attention_mask": np.pad(np.ones_like(ids), (0, rest)),
                "labels": table.labels[end - 1 : end],
            }

    return write_mindrecord(output, rows(), "")
