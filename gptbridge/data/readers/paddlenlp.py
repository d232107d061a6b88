"""PaddleNLP's and FleetX's PREFIX_ids.npy with PREFIX_idx.npz, and the older PREFIX_ids.npz.

`ids` holds all tokens back to back, `lens` the tokens of each sentence, which is a document unless
the text was split into sentences: both systems split and sample by `lens` alone. `docs` (sentences
before each document) is checked; `sents`, which only some writers add, is ignored.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from gptbridge.data.readers.numpy_files import open_npy, open_npz
from gptbridge.data.tokens import Ids, TokenDataset, TokenSource, offsets_of
from gptbridge.weights.formats.source import SourceFile


def open_paddlenlp(prefix: Path) -> TokenDataset:
    """Open PREFIX_ids.npy and PREFIX_idx.npz; BadInput where they are damaged or disagree."""
    files = (prefix.with_name(f"{prefix.name}_ids.npy"), prefix.with_name(f"{prefix.name}_idx.npz"))
    with closing(SourceFile(files[0])) as source:
        ids = open_npy(source)
    with closing(SourceFile(files[1])) as source:
        index = open_npz(source, ("lens", "docs"))
        return _dataset("paddlenlp", prefix, files, source, ids, index)


def open_paddlenlp_npz(prefix: Path) -> TokenDataset:
    """Open PREFIX_ids.npz, which holds `ids` and `lens`; BadInput where it is damaged."""
    with closing(SourceFile(prefix.with_name(f"{prefix.name}_ids.npz"))) as source:
        index = open_npz(source, ("ids", "lens"))
        if "ids" not in index:
            source.refuse("holds no 'ids'")
        return _dataset("paddlenlp-npz", prefix, (source.path,), source, index["ids"], index)


def _dataset(
    name: str,
    prefix: Path,
    files: tuple[Path, ...],
    source: SourceFile,
    ids: TokenSource,
    index: dict[str, TokenSource],
) -> TokenDataset:
    if "lens" not in index:
        source.refuse("holds no 'lens'")
    lengths = _all(index["lens"])
    if len(lengths) and (shortest := int(lengths.min())) < 0:
        source.refuse(f"document {int(lengths.argmin())} has length {shortest}")
    if len(lengths) and int(lengths.max()) > len(ids):
        source.refuse(f"document {int(lengths.argmax())} has {lengths.max()} tokens, the ids {len(ids)}")
    offsets = offsets_of(lengths)
    if offsets[-1] != len(ids) or offsets.min() < 0:  # below 0: the sum overflowed
        source.refuse(f"its lengths add up to {offsets[-1]}, the ids are {len(ids)}")
    docs = index.get("docs")
    if docs is not None and not _is_count(_all(docs), len(lengths)):
        source.refuse(f"'docs' does not count up from 0 to {len(lengths)}")
    return TokenDataset(name, str(prefix), ids, offsets, files=files)


def _all(source: TokenSource) -> Ids:
    return source.read(0, len(source))


def _is_count(docs: Ids, last: int) -> bool:
    ends_fit = len(docs) > 0 and docs[0] == 0 and docs[-1] == last
    return ends_fit and bool((docs[1:] >= docs[:-1]).all())
