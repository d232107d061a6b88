"""PaddleNLP's and FleetX's PREFIX_ids.npy with PREFIX_idx.npz, and the older PREFIX_ids.npz.

`ids` holds all tokens back to back, `lens` the tokens of each sentence, which is a document unless
the text was split into sentences: both systems split and sample by `lens` alone. `docs` (sentences
before each document) is checked; `sents`, which only some writers add, is ignored.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.data.readers.numpy_files import map_npy, map_npz
from gptbridge.data.tokens import FlatTokens, TokenDataset
from gptbridge.weights.formats.source import SourceFile


def open_paddlenlp(prefix: Path) -> TokenDataset:
    """Open PREFIX_ids.npy and PREFIX_idx.npz; BadInput where they are damaged or disagree."""
    with closing(SourceFile(prefix.with_name(f"{prefix.name}_ids.npy"))) as source:
        ids = map_npy(source)
    with closing(SourceFile(prefix.with_name(f"{prefix.name}_idx.npz"))) as source:
        index = map_npz(source, ("lens", "docs"))
        return _dataset("paddlenlp", prefix, source, ids, index)


def open_paddlenlp_npz(prefix: Path) -> TokenDataset:
    """Open PREFIX_ids.npz, which holds `ids` and `lens`; BadInput where it is damaged."""
    with closing(SourceFile(prefix.with_name(f"{prefix.name}_ids.npz"))) as source:
        index = map_npz(source, ("ids", "lens"))
        if "ids" not in index:
            source.refuse("holds no 'ids'")
        return _dataset("paddlenlp-npz", prefix, source, index["ids"], index)


def _dataset(
    name: str,
    prefix: Path,
    source: SourceFile,
    ids: NDArray[np.integer[Any]],
    index: dict[str, NDArray[np.integer[Any]]],
) -> TokenDataset:
    if "lens" not in index:
        source.refuse("holds no 'lens'")
    lengths = index["lens"]
    if len(lengths) and (shortest := int(lengths.min())) < 0:
        source.refuse(f"document {int(lengths.argmin())} has length {shortest}")
    if len(lengths) and int(lengths.max()) > len(ids):
        source.refuse(f"document {int(lengths.argmax())} has {lengths.max()} tokens, the ids {len(ids)}")
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:], dtype=np.int64)
    if offsets[-1] != len(ids) or offsets.min() < 0:  # below 0: the sum overflowed
        source.refuse(f"its lengths add up to {offsets[-1]}, the ids are {len(ids)}")
    docs = index.get("docs")
    if docs is not None and not _is_count(docs, len(lengths)):
        source.refuse(f"'docs' does not count up from 0 to {len(lengths)}")
    return TokenDataset(name, str(prefix), FlatTokens(ids), offsets)


def _is_count(docs: NDArray[np.integer[Any]], last: int) -> bool:
    ends_fit = len(docs) > 0 and docs[0] == 0 and docs[-1] == last
    return ends_fit and bool((docs[1:] >= docs[:-1]).all())
