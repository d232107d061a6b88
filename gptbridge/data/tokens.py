"""A token dataset: documents of token ids, whatever file they lie in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from gptbridge.data.digests import content_digest, kept_digest
from gptbridge.errors import BadInput

Ids = NDArray[np.integer[Any]]

_SAMPLE_BLOCKS = 256
_SAMPLE_BLOCK = 4096


class TokenSource(Protocol):
    """The token ids of all documents, back to back."""

    @property
    def dtype(self) -> np.dtype[np.integer[Any]]:
        """The type of an id as stored."""

    def __len__(self) -> int:
        """Return the number of tokens."""

    def read(self, start: int, stop: int) -> Ids:
        """Return tokens `start` to `stop` (exclusive)."""


class FlatTokens:
    """Tokens that lie back to back in one array."""

    def __init__(self, ids: Ids) -> None:
        self._ids = np.asarray(ids)
        self.dtype = self._ids.dtype

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self._ids)

    def read(self, start: int, stop: int) -> Ids:
        """Return a view of tokens `start` to `stop` (exclusive)."""
        return self._ids[start:stop]


class ChainedTokens:
    """The tokens of several sources, one after the other."""

    def __init__(self, sources: list[TokenSource]) -> None:
        self._sources = sources
        self._ends = np.cumsum([len(source) for source in sources])
        self.dtype = np.result_type(*(source.dtype for source in sources))  # holds the ids of all

    def __len__(self) -> int:
        """Return the number of tokens."""
        return int(self._ends[-1])

    def read(self, start: int, stop: int) -> Ids:
        """Return tokens `start` to `stop` (exclusive); a copy where they span two sources."""
        first, last = np.searchsorted(self._ends, [start, max(start, stop - 1)], side="right")
        pieces: list[Ids] = []
        for i in range(first, min(last + 1, len(self._sources))):
            source = self._sources[i]
            begin = int(self._ends[i]) - len(source)
            pieces.append(source.read(max(0, start - begin), min(len(source), stop - begin)))
        return pieces[0] if len(pieces) == 1 else np.concatenate([np.empty(0, self.dtype), *pieces])


@dataclass(frozen=True)
class TokenDataset:
    """Documents of token ids, and what is known about the tokenizer that made them.

    `offsets` (int64, documents + 1) are the positions of the documents' first tokens in `source`;
    the first is 0, the last the number of tokens. `tokenizer` is what `load_tokenizer` opens; it,
    `tokenizer_identity` and `vocab_size` are None where the dataset does not tell them.
    """

    format: str
    path: str | None  # None: the embedded corpus
    source: TokenSource
    offsets: NDArray[np.int64]
    tokenizer_identity: str | None = None
    vocab_size: int | None = None
    tokenizer: str | None = None
    files: tuple[Path, ...] = ()  # that hold it

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.offsets) - 1

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return int(self.offsets[-1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, (documents,)."""
        return np.diff(self.offsets)

    @property
    def where(self) -> str:
        """The dataset's name in messages."""
        return self.path or "the embedded corpus"

    def document_at(self, position: int) -> int:
        """Return the number of the document that holds the token at `position`."""
        return int(np.searchsorted(self.offsets, position, side="right")) - 1

    def require_within(
        self, limit: int | None, ids: Ids, start: int, *, allowed: str, hint: str | None = None
    ) -> None:
        """Raise BadInput where one of `ids`, which begin at position `start`, is not within 0..limit-1."""
        bad = beyond(limit, ids)
        if bad.any():
            at = int(bad.argmax())
            raise BadInput(
                f"token {ids[at]} in document {self.document_at(start + at)} is beyond the vocabulary",
                where=self.where,
                allowed=allowed,
                hint=hint,
            )

    @cached_property
    def digest(self) -> str:
        """The identity of the content: `gptbridge.data.digests`."""
        offsets = FlatTokens(self.offsets)
        if self.path is None:
            return content_digest(self.source, offsets)
        return kept_digest(Path(self.path), self.files, self.source, offsets)

    @cached_property
    def sampled_digest(self) -> str:
        """The identity that older checkpoints note: of ids and offsets, `sampled_blocks` alone."""
        digest = hashlib.sha256(f"{self.documents} documents {self.tokens} tokens".encode())
        for source in (self.source, FlatTokens(self.offsets)):
            for _, block in sampled_blocks(source):
                digest.update(block.astype("<i8").tobytes())
        return digest.hexdigest()


def offsets_of(lengths: Sequence[int] | Ids) -> NDArray[np.int64]:
    """Return where documents of these lengths, back to back, begin, and where the last ends."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:], dtype=np.int64)
    return offsets


def beyond(limit: int | None, ids: Ids) -> NDArray[np.bool_]:
    """Tell of each of `ids` whether it is negative or, where there is a `limit`, not below it."""
    negative = ids < 0
    return negative if limit is None else negative | (ids >= limit)


def sampled_blocks(source: TokenSource) -> Iterator[tuple[int, Ids]]:
    """Yield up to 256 blocks of 4096 ids with their positions, evenly spaced: all of a small source."""
    for start in _block_starts(len(source)):
        yield start, source.read(start, min(start + _SAMPLE_BLOCK, len(source)))


def _block_starts(count: int) -> list[int]:
    if count <= _SAMPLE_BLOCKS * _SAMPLE_BLOCK:
        return list(range(0, count, _SAMPLE_BLOCK))
    return [i * (count - _SAMPLE_BLOCK) // (_SAMPLE_BLOCKS - 1) for i in range(_SAMPLE_BLOCKS)]
