"""Which records share a row of a batch."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

Numbers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Filled:
    """Rows of records: row n holds records[offsets[n] : offsets[n + 1]], numbers of a table."""

    records: Numbers
    offsets: Numbers

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.offsets) - 1

    def row(self, number: int) -> Numbers:
        """Return the records of a row."""
        return self.records[self.offsets[number] : self.offsets[number + 1]]

    def lengths(self, of_records: Numbers) -> Numbers:
        """Return the tokens of each row; `of_records` are those of all records of the table."""
        return np.add.reduceat(of_records[self.records], self.offsets[:-1])


def alone(records: Numbers) -> Filled:
    """Return rows of one record each."""
    return Filled(records, np.arange(len(records) + 1))


def packed(records: Numbers, of_records: Numbers, room: int) -> Filled:
    """Return as few rows of at most `room` tokens as taking always the longest record that fits gives.

    It is a function of the lengths alone, so that every epoch has as many rows.
    """
    waiting: dict[int, list[int]] = {}
    for record, length in zip(records[::-1].tolist(), of_records[records[::-1]].tolist(), strict=True):
        waiting.setdefault(length, []).append(record)
    lengths, rows = sorted(waiting), []
    while lengths:
        row, left = list[int](), room
        while fitting := bisect_right(lengths, left):
            length = lengths[fitting - 1]
            row.append(waiting[length].pop())
            left -= length
            if not waiting[length]:
                del lengths[fitting - 1]
        rows.append(row)
    ends = np.cumsum([0, *map(len, rows)])
    return Filled(np.fromiter(chain.from_iterable(rows), np.int64), ends)
