"""What a token dataset holds: every token of it is read and checked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from gptbridge.data.dataset import open_dataset
from gptbridge.data.sampling import SPLITS, split_bounds
from gptbridge.data.tokens import TokenDataset
from gptbridge_specs.run import DataSpec

_CHUNK = 1 << 22  # tokens read at a time


@dataclass(frozen=True, slots=True)
class DatasetFacts:
    """A token dataset in numbers and words."""

    path: str
    format: str
    documents: int
    tokens: int
    dtype: str
    document_tokens: dict[str, float]  # min, median, mean, max; how many are empty
    largest_token: int
    vocab_size: int | None
    tokenizer: str | None  # its identity
    digest: str
    splits: dict[str, dict[str, int]]  # documents and tokens of each, by the default's shares

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return asdict(self)


def inspect_dataset(path: str | None) -> DatasetFacts:
    """Return the facts of the dataset at `path`; None: the embedded corpus.

    Raises BadInput where it is damaged, or a token is negative or beyond the vocabulary that the
    dataset names.
    """
    dataset = open_dataset(path)
    lengths = dataset.lengths
    bounds = split_bounds(dataset.documents, DataSpec().split)
    splits = np.transpose([np.diff(bounds), np.diff(dataset.offsets[list(bounds)])]).tolist()
    return DatasetFacts(
        path=dataset.where,
        format=dataset.format,
        documents=dataset.documents,
        tokens=dataset.tokens,
        dtype=dataset.source.dtype.name,
        document_tokens={
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": round(float(lengths.mean()), 1),
            "max": int(lengths.max()),
            "empty": int((lengths == 0).sum()),
        },
        largest_token=_largest_token(dataset),
        vocab_size=dataset.vocab_size,
        tokenizer=dataset.tokenizer_identity,
        digest=dataset.digest,
        splits={name: {"documents": n, "tokens": t} for name, (n, t) in zip(SPLITS, splits, strict=True)},
    )


def _largest_token(dataset: TokenDataset) -> int:
    limit = dataset.vocab_size
    allowed = "0 or more" if limit is None else f"0 to {limit - 1}"
    largest = 0
    for start in range(0, dataset.tokens, _CHUNK):
        ids = dataset.source.read(start, min(start + _CHUNK, dataset.tokens))
        dataset.require_within(limit, ids, start, allowed=allowed)
        largest = max(largest, int(ids.max()))
    return largest
