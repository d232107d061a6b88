"""What a token dataset holds: every token of it is read and checked."""

from __future__ import annotations

from typing import Any

import numpy as np

from gptbridge.data.dataset import open_dataset
from gptbridge.data.sampling import SPLITS, split_bounds
from gptbridge.data.tokens import TokenDataset
from gptbridge_specs.run import DataSpec

_CHUNK = 1 << 22  # tokens read at a time


def inspect_dataset(path: str | None) -> dict[str, Any]:
    """Return the facts of the dataset at `path` (None: the embedded corpus); splits are the default's.

    Raises BadInput where it is damaged, or a token is negative or beyond the vocabulary that the
    dataset names.
    """
    dataset = open_dataset(path)
    lengths = dataset.lengths
    largest = _largest_token(dataset)
    bounds = split_bounds(dataset.documents, DataSpec().split)
    starts = [int(dataset.offsets[bound]) for bound in bounds]
    return {
        "path": dataset.where,
        "format": dataset.format,
        "documents": dataset.documents,
        "tokens": dataset.tokens,
        "dtype": dataset.source.dtype.name,
        "document_tokens": {
            "min": int(lengths.min()),
            "median": float(np.median(lengths)),
            "mean": round(float(lengths.mean()), 1),
            "max": int(lengths.max()),
            "empty": int((lengths == 0).sum()),
        },
        "largest_token": largest,
        "vocab_size": dataset.vocab_size,
        "tokenizer": dataset.tokenizer_identity,
        "digest": dataset.digest,
        "splits": {
            name: {"documents": bounds[i + 1] - bounds[i], "tokens": starts[i + 1] - starts[i]}
            for i, name in enumerate(SPLITS)
        },
    }


def _largest_token(dataset: TokenDataset) -> int:
    limit = dataset.vocab_size
    allowed = "0 or more" if limit is None else f"0 to {limit - 1}"
    largest = 0
    for start in range(0, dataset.tokens, _CHUNK):
        ids = dataset.source.read(start, min(start + _CHUNK, dataset.tokens))
        dataset.require_within(limit, ids, start, allowed=allowed)
        largest = max(largest, int(ids.max()))
    return largest
