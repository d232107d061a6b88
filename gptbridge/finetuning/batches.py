"""The batches of a run on records: rows of like length together, padded on the right to a usual length.

What follows a row's end is never seen by its tokens, so that padding changes nothing but the work. A row
is one record, or several that do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.data.batches import prefetched
from gptbridge.data.replicas import Replica
from gptbridge.data.sampling import SPLITS, Permutation, Split, split_bounds
from gptbridge.data.tokenizers import Tokenizer, load_tokenizer
from gptbridge.errors import UsageError
from gptbridge.finetuning.packing import Filled, alone, packed
from gptbridge.finetuning.rows import class_names
from gptbridge.finetuning.table import Numbers, RowTable, read_table
from gptbridge.session import Batch
from gptbridge_specs import RunSpec

_LENGTHS = 8  # into how many lengths training.seq_length is cut: every one may be compiled
_WINDOW = 32  # batches whose rows are sorted by length together


@dataclass(frozen=True)
class RecordData(Replica):
    """The batches of one rank of `ranks` replicas, as `gptbridge.data.batches.RunData` has them."""

    table: RowTable
    tokenizer: Tokenizer
    thread: ThreadPoolExecutor
    held: RowTable | None = None  # to evaluate on, where it is a file of its own

    @property
    def digest(self) -> str:
        """The identity of the content that is trained on."""
        return self.table.digest

    def is_called(self, digest: str) -> bool:
        """Tell whether `digest` is this content's."""
        return digest == self.digest

    def facts(self) -> dict[str, Any]:
        """Return what a run's log says of its data."""
        return {
            "data": str(self.table.path),
            "data_digest": self.digest,
            "records": len(self.table),
            "training_records": len(self.rows.records),
            "training_tokens": int(self.table.lengths[self.rows.records].sum()),
            "samples_per_epoch": len(self.rows),
            **self._balance(),
        }

    def _balance(self) -> dict[str, Any]:
        """Return how many records of each class are trained on."""
        if self.spec.task.name != "classification" or self.spec.task.regression:
            return {}
        names, last = class_names(self.spec), self.table.offsets[1:] - 1
        said = self.table.labels[last[self.rows.records]]
        return {"classes": dict(zip(names, np.bincount(said, minlength=len(names)).tolist(), strict=True))}

    @cached_property
    def rows(self) -> Filled:
        """The rows that are trained on."""
        records = self.records("training")
        if self.spec.task.records.packed:
            return packed(records, self.table.lengths, self.spec.training.seq_length)
        return alone(records)

    def records(self, split: Split) -> Numbers:
        """Return the records of a split; UsageError where there are none."""
        if split == "validation" and self.held is not None:
            return np.arange(len(self.held))
        bounds = split_bounds(len(self.table), self.spec.data.split)
        index = SPLITS.index(split)
        records = np.arange(*bounds[index : index + 2])
        if not len(records):
            raise UsageError(
                f"the {split} split holds none of the {len(self.table)} records",
                where="data.split",
                hint="Give it a larger share"
                + ("; evaluation.interval=0 trains without it" if split == "validation" else ""),
            )
        return records

    def training(self, first_step: int) -> Iterator[Batch]:
        """Yield the batches of steps `first_step`, `first_step` + 1, ... without end; 1 is the first.

        Rows beyond training.epochs, which the last batch of the run may need to be whole, are masked.
        """
        rows, epochs = self.rows, self.spec.training.epochs
        end = max(1, round(epochs * len(rows))) if epochs else None
        size, lengths = self.spec.training.global_batch_size, rows.lengths(self.table.lengths)
        order = lru_cache(2)(lambda epoch: self._order(lengths, epoch))

        def make(step: int) -> Batch:
            epochs, within = np.divmod((step - 1) * size + np.arange(size), len(rows))
            chosen = [rows.row(order(int(e))[n]) for e, n in zip(epochs, within, strict=True)]
            counted = (step - 1) * size + np.arange(size) < (step * size if end is None else end)
            batch, starts = self._batch(self.table, chosen, counted, step)
            return replace(batch, starts=starts) if self.spec.task.records.packed else batch

        return prefetched(self.thread, make, count(first_step))

    def validation(self) -> Iterator[Batch]:
        """Yield the first `evaluation.batches` batches of what is evaluated on, the shortest rows first.

        What lacks to a whole last batch is filled with masked rows.
        """
        table, records = self.held or self.table, self.records("validation")
        size = self.spec.evaluation.global_batch_size or self.spec.training.global_batch_size
        records = records[: size * self.spec.evaluation.batches]
        rows = alone(records[np.argsort(table.lengths[records], kind="stable")])

        def make(number: int) -> Batch:
            at = number * size + np.arange(size)
            chosen = [rows.row(n) for n in np.minimum(at, len(rows) - 1)]
            return self._batch(table, chosen, at < len(rows), 0)[0]

        return prefetched(self.thread, make, iter(range(-(-len(rows) // size))))

    def _order(self, lengths: Numbers, epoch: int) -> Numbers:
        """Return rows of `lengths` in the order of an epoch: at random, then in windows of batches by length.

        Batches are cut where those of the whole run are, whose first row this epoch need not begin with.
        """
        seed, size = self.spec.training.seed, self.spec.training.global_batch_size
        rows = np.arange(len(lengths))
        if self.spec.data.shuffle:
            rows = Permutation(len(rows), seed=seed, epoch=epoch)(rows)
        first = -epoch * len(rows) % size  # the rest of a batch that the epoch before began
        pieces = [rows[:first]]
        for start in range(first, len(rows), _WINDOW * size):
            window = rows[start : start + _WINDOW * size]
            window = window[np.argsort(lengths[window], kind="stable")]
            whole = len(window) // size
            batches = window[: whole * size].reshape(whole, size)
            if self.spec.data.shuffle and whole:
                place = Permutation(whole, seed=seed, epoch=epoch)(np.arange(whole))
                batches = batches[place]
            pieces += [batches.ravel(), window[whole * size :]]
        return np.concatenate(pieces)

    def _batch(
        self, table: RowTable, chosen: Sequence[Numbers], counted: NDArray[np.bool_], step: int
    ) -> tuple[Batch, NDArray[np.int32]]:
        """Return a batch of rows of the records `chosen`, and where these start.

        Rows that are not `counted` are masked.
        """
        width = self._width(max(int(table.lengths[records].sum()) for records in chosen))
        mine = self.share(len(chosen))
        inputs, starts = (np.zeros((*mine.shape, width), np.int32) for _ in range(2))
        labels = np.zeros(inputs.shape, table.labels.dtype)
        mask = np.zeros(inputs.shape, np.bool_)
        for place in np.ndindex(*mine.shape):
            first = 0
            for record in chosen[mine[place]]:
                held = slice(table.offsets[record], table.offsets[record + 1])
                here = slice(first, first + held.stop - held.start)
                inputs[place][here], labels[place][here] = table.inputs[held], table.labels[held]
                starts[place][first:] = first
                mask[place][here][table.starts[record] : table.stops[record]] = counted[mine[place]]
                first = here.stop
            starts[place][first:] = first  # what fills up the row
        seeds = self.dropout_seeds(step, len(mine))
        total = sum(int(table.counted[row].sum()) for row, of in zip(chosen, counted, strict=True) if of)
        return Batch(inputs, labels, mask, total, seeds), starts

    def _width(self, longest: int) -> int:
        """Return the usual length that holds `longest` tokens."""
        whole = self.spec.training.seq_length
        step = -(-whole // _LENGTHS)
        return min(whole, -(-longest // step) * step)


def count_rows(spec: RunSpec) -> int:
    """Return how many rows the training split of `spec` has; its records are read for it."""
    with open_records(spec, lambda message: None) as data:
        return len(data.rows)


@contextmanager
def open_records(spec: RunSpec, warn: Callable[[str], None]) -> Iterator[RecordData]:
    """Open the records of `spec`, to be read by one rank: `of_rank` makes it one of several.

    BadInput for a bad record, UsageError for a spec that does not fit. `warn` hears what was left out.
    """
    if spec.data.path is None:
        problem = f"{spec.task.name} is learned from a file of records, and none is named"
        raise UsageError(problem, where="data.path", allowed="a file with one record a line, such as .jsonl")
    tokenizer = load_tokenizer(spec.data.tokenizer or "byte")
    if tokenizer.vocab_size > spec.model.vocab_size:
        raise UsageError(
            f"{spec.model.vocab_size} is below the tokenizer's vocabulary",
            where="model.vocab_size",
            allowed=f"{tokenizer.vocab_size} or more",
        )
    table = read_table(Path(spec.data.path), spec, tokenizer, warn)
    apart = spec.data.validation_path
    held = read_table(Path(apart), spec, tokenizer, warn) if apart is not None else None
    with ThreadPoolExecutor(1, "gptbridge-data") as thread:
        data = RecordData(table, tokenizer, thread, held, spec=spec)
        data.records("training")
        if spec.evaluation.interval:
            data.records("validation")
        yield data
