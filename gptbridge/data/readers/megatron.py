"""Megatron's PREFIX.bin and PREFIX.idx, and the PREFIX.json and PREFIX.tokenizer of `data prepare`.

The layout is that of `gptbridge.data.indexed_files`. Every writer of it puts the sequences back to
back and in order, so that is demanded: the tokens are then one flat array. The index may end with a
mode (int8) a sequence, which multimodal Megatron adds and is of no use here.
"""

from __future__ import annotations

import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gptbridge.data.indexed_files import DTYPE_CODES, MAGIC, VERSION
from gptbridge.data.readers.file_tokens import FileTokens, array_at, open_ids
from gptbridge.data.tokens import TokenDataset, offsets_of
from gptbridge.errors import BadInput, printable
from gptbridge.files import INDEX_LIMIT, read_json
from gptbridge.weights.formats.source import SourceFile

_HEADER = struct.Struct("<9sQBQQ")
_DTYPES = {code: name for name, code in DTYPE_CODES.items()}
_CHUNK = 1 << 20
_EMPTY_LIMIT = 1 << 20  # sequences without a token, of which an index of nothing else would be made


def open_megatron(prefix: Path) -> TokenDataset:
    """Open PREFIX.bin and PREFIX.idx; BadInput where they are damaged or disagree."""
    with closing(SourceFile(_beside(prefix, ".idx"))) as index:
        dtype, sequences, bounds = _read_header(index)
        ids = open_ids(_beside(prefix, ".bin"), dtype)
        offsets = _read_offsets(index, sequences, bounds, ids)
    folder = _beside(prefix, ".tokenizer")
    return TokenDataset(
        "megatron",
        str(prefix),
        ids,
        offsets,
        tokenizer=str(folder) if folder.is_dir() else None,
        files=(_beside(prefix, ".bin"), _beside(prefix, ".idx")),
        **_described(prefix, offsets),
    )


def _beside(prefix: Path, ending: str) -> Path:
    return prefix.with_name(prefix.name + ending)


def _read_header(index: SourceFile) -> tuple[str, int, int]:
    """Return the type of the tokens and the numbers of sequences and of document bounds."""
    magic, version, code, sequences, bounds = _HEADER.unpack(index.bytes_at(0, _HEADER.size, "its header"))
    if magic != MAGIC:
        index.refuse(f"begins with {magic!r}", allowed=f"{MAGIC!r}")
    if version != VERSION:
        index.refuse(f"version {version}", allowed=str(VERSION))
    if code not in _DTYPES:
        allowed = ", ".join(f"{code} ({name})" for code, name in _DTYPES.items())
        index.refuse(f"type code {code} is no integer's", allowed=allowed)
    expected = _HEADER.size + 12 * sequences + 8 * bounds
    if index.size not in (expected, expected + sequences):
        index.refuse(
            f"{index.size} bytes, but {sequences} sequences and {bounds} document bounds take {expected}"
        )
    return _DTYPES[code], sequences, bounds


def _read_offsets(index: SourceFile, sequences: int, bounds: int, ids: FileTokens) -> NDArray[np.int64]:
    """Return the offsets of the documents in `ids`, after a check of all that the index says."""
    if sequences > len(ids) + _EMPTY_LIMIT:
        index.refuse(f"{sequences} sequences of {len(ids)} tokens")
    lengths = array_at(index, _HEADER.size, sequences, "<i4", "the lengths")
    pointers = array_at(index, _HEADER.size + 4 * sequences, sequences, "<i8", "the pointers")
    documents = array_at(index, _HEADER.size + 12 * sequences, bounds, "<i8", "the document bounds")
    if sequences and (shortest := int(lengths.min())) < 0:
        index.refuse(f"sequence {int(lengths.argmin())} has length {shortest}")
    ends = offsets_of(lengths)
    if ends[-1] != len(ids):
        index.refuse(f"counts {ends[-1]} tokens where the .bin holds {len(ids)}")
    _check_pointers(index, pointers, ends, ids.dtype.itemsize)
    _check_bounds(index, documents, sequences)
    offsets: NDArray[np.int64] = ends[documents]
    return offsets


def _check_pointers(
    index: SourceFile, pointers: NDArray[np.int64], ends: NDArray[np.int64], itemsize: int
) -> None:
    """Refuse the first sequence that does not begin where the one before ends."""
    for start in range(0, len(pointers), _CHUNK):
        given = pointers[start : start + _CHUNK]
        expected = ends[start : start + len(given)] * itemsize
        wrong = given != expected
        if wrong.any():
            i = int(wrong.argmax())
            index.refuse(
                f"sequence {start + i} points to byte {given[i]} of the .bin",
                allowed=f"{expected[i]}, the end of the one before",
            )


def _check_bounds(index: SourceFile, documents: NDArray[np.int64], sequences: int) -> None:
    if len(documents) < 2 or documents[0] != 0 or documents[-1] != sequences:
        index.refuse(f"its document bounds do not span 0 to {sequences} sequences")
    for start in range(0, len(documents) - 1, _CHUNK):
        here = documents[start : start + _CHUNK + 1]
        falling = here[1:] < here[:-1]
        if falling.any():
            index.refuse(f"document {start + int(falling.argmax())} ends before it begins")


def _described(prefix: Path, offsets: NDArray[np.int64]) -> dict[str, Any]:
    """Return what PREFIX.json tells of the tokenizer, after a check that it tells of these files."""
    path = _beside(prefix, ".json")
    if not path.exists():
        return {}
    content = read_json(path, limit=INDEX_LIMIT)
    tokenizer = content.get("tokenizer")
    if content.get("format") != "megatron" or not isinstance(tokenizer, dict):
        return {}  # somebody else's file
    for name, count in (("documents", len(offsets) - 1), ("tokens", int(offsets[-1]))):
        if content.get(name) != count:
            raise BadInput(
                f"tells of {printable(content.get(name))} {name}, the .idx of {count}",
                where=path,
                hint="The files are of two datasets: prepare the text again",
            )
    identity, vocab_size = tokenizer.get("identity"), tokenizer.get("vocab_size")
    if type(identity) is not str or type(vocab_size) is not int:
        raise BadInput("tokenizer.identity or tokenizer.vocab_size is missing or of a wrong type", where=path)
    return {"tokenizer_identity": identity, "vocab_size": vocab_size}
