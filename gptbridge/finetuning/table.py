"""All rows of a file, read once as a stream and kept as numbers: four bytes a token."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gptbridge.data.tokenizers import Tokenizer
from gptbridge.data.tokens import offsets_of
from gptbridge.errors import BadInput
from gptbridge.finetuning.lines import BadRecord, Fields, read_records
from gptbridge.finetuning.rows import Row, Rows
from gptbridge.rules.stepping import Labels
from gptbridge_specs import RunSpec
from gptbridge_specs.records import RecordsSpec

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class RowTable:
    """The rows of the records of `path`, in the order of the file.

    Row n has the inputs and labels [offsets[n], offsets[n + 1]), of which [starts[n], stops[n]), counted
    within the row, count in the loss.
    """

    path: Path
    inputs: NDArray[np.int32]
    labels: Labels
    offsets: Numbers
    starts: Numbers
    stops: Numbers

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.starts)

    @cached_property
    def lengths(self) -> Numbers:
        """The tokens of each row."""
        return np.diff(self.offsets)

    @cached_property
    def counted(self) -> Numbers:
        """How many positions of each row count."""
        return self.stops - self.starts

    @cached_property
    def digest(self) -> str:
        """The identity of the content: of what is read, what is to be said, and what counts."""
        total = hashlib.sha256()
        for part in (self.inputs, self.labels, self.offsets, self.starts, self.stops):
            total.update(part.data)
        return total.hexdigest()


def read_rows(
    path: Path, rows: Rows, records: RecordsSpec, warn: Callable[[str], None]
) -> Iterator[tuple[Fields, Row]]:
    """Yield the fields and the row of each record of `path`.

    BadInput names file and number of the first bad record, or, with records.skip_bad, where nothing is left;
    then `warn` hears how many are left out.
    """
    good, bad, first = 0, 0, ""
    for number, found in read_records(path, records.format):
        try:
            if isinstance(found, BadRecord):
                raise found
            row = rows.of(found)
        except BadRecord as problem:
            if not records.skip_bad:
                hint = "--skip-bad leaves such records out and counts them"
                if number == 1 and records.format == "jsonl" and path.suffix in (".tsv", ".csv"):
                    hint = "Which table it is says -o task.records.format=FORMAT, such as sst2 or imdb"
                raise BadInput(str(problem), where=f"{path}, record {number}", hint=hint) from problem
            bad += 1
            first = first or f"record {number}: {problem}"
            continue
        good += 1
        yield found, row
    if bad:
        warn(f"{path}: {bad} of {good + bad} records are bad and left out, first {first}")
    if not good:
        raise BadInput("holds no record", where=path)


def read_table(path: Path, spec: RunSpec, tokenizer: Tokenizer, warn: Callable[[str], None]) -> RowTable:
    """Read the records of `path` for the task of `spec`; errors and `warn` as above."""
    inputs, labels = array("i"), array("f" if spec.task.regression else "i")
    lengths, starts, stops = array("q"), array("q"), array("q")
    for _, row in read_rows(path, Rows(spec, tokenizer), spec.task.records, warn):
        inputs.extend(row.inputs)
        labels.extend(row.labels)  # type: ignore[arg-type]
        lengths.append(len(row.inputs))
        starts.append(row.start)
        stops.append(row.stop)
    sizes, first, last = (np.frombuffer(part, np.int64) for part in (lengths, starts, stops))
    read = np.frombuffer(inputs, np.intc).astype(np.int32, copy=False)
    said = np.frombuffer(labels, np.dtype(labels.typecode))
    said = said if spec.task.regression else said.astype(np.int32, copy=False)
    return RowTable(path, read, said, offsets_of(sizes), first, last)
