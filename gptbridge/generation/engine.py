"""Many requests through one decoder: each comes when there is room and leaves when it has ended.

What a request is given depends on its prompt and options alone, whatever runs beside it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gptbridge.generation.requests import Logits, Request
from gptbridge.session import LanguageModel


@dataclass(frozen=True, slots=True)
class _Row:
    tokens: tuple[int, ...]  # all of them; the decoder holds those before the last
    place: int = -1  # in the decoder, before it is rearranged; -1: not there


@dataclass
class _Running:
    request: Request
    rows: list[_Row]


class Engine:
    """Continues requests in at most `rows` rows, or as many as one of them needs.

    The model sees the last `window` tokens of a row: one that is longer is read anew for each token, for
    positions are learned. `capacity` is the length of the longest row that will come, if that is known.
    Tokens from `vocab_size` on are never chosen.
    """

    def __init__(
        self, model: LanguageModel, *, rows: int, window: int, vocab_size: int, capacity: int | None = None
    ) -> None:
        self._decoder = model.decoder(rows, min(window, capacity or window))
        self._rows, self._window, self._vocab_size = rows, window, vocab_size
        self._placed = list(range(rows))
        self._waiting: deque[Request] = deque()
        self._running: list[_Running] = []

    @property
    def busy(self) -> bool:
        """Whether there is anything left to continue."""
        return bool(self._waiting or self._running)

    def submit(self, request: Request) -> None:
        """Let a request wait for its turn."""
        self._waiting.append(request)

    def step(self) -> list[Request]:
        """Add a token to every row; return the requests that have ended."""
        self._admit()
        logits = self._feed([row for running in self._running for row in running.rows])
        first = 0
        for running in self._running:
            rows = running.rows
            following = running.request.advance(logits[first : first + len(rows), : self._vocab_size])
            running.rows = [_Row((*rows[row].tokens, token), first + row) for row, token in following]
            first += len(rows)
        ended = [running.request for running in self._running if not running.rows]
        self._running = [running for running in self._running if running.rows]
        return ended

    def _admit(self) -> None:
        """Let those that wait begin, in order, while there is room for all that they may need."""
        taken = sum(running.request.width for running in self._running)
        while self._waiting and (not taken or taken + self._waiting[0].width <= self._rows):
            request = self._waiting.popleft()
            taken += request.width
            self._running.append(_Running(request, [_Row(request.prompt)]))

    def _feed(self, rows: Sequence[_Row]) -> Logits:
        """Return the (R, V) logits after each row's last token."""
        held = [row.place >= 0 and len(row.tokens) <= self._window for row in rows]
        places = [row.place if there else -1 for row, there in zip(rows, held, strict=True)]
        if places != self._placed:
            self._decoder.keep(np.array(places, np.int32))
            self._placed = list(range(len(rows)))
        new = [
            row.tokens[-1:] if there else row.tokens[-self._window :]
            for row, there in zip(rows, held, strict=True)
        ]
        lengths = np.array([len(tokens) for tokens in new], np.int32)
        classes = np.array([int(length - 1).bit_length() for length in lengths])
        parts = [classes == size for size in np.unique(classes)]  # rows of about one length at a time
        found = [self._decoder.feed(*_padded(new, np.where(part, lengths, 0))) for part in parts]
        for part, logits in zip(parts[1:], found[1:], strict=True):
            found[0][part] = logits[part]
        return found[0]


def _padded(
    rows: Sequence[Sequence[int]], lengths: NDArray[np.int32]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the first `lengths` (R,) tokens of each row as (R, T) with zeros after them, and `lengths`."""
    tokens = np.zeros((len(rows), lengths.max()), np.int32)
    for padded, row, length in zip(tokens, rows, lengths, strict=True):
        padded[:length] = row[:length]
    return tokens, lengths
