"""Writers of token files, made from the formats' descriptions and not from the readers."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

MEGATRON_CODES = {"uint8": 1, "int8": 2, "int16": 3, "int32": 4, "int64": 5, "uint16": 8}


def write_megatron(
    prefix: Path,
    sequences: Sequence[Sequence[int]],
    dtype: str = "uint16",
    documents: Sequence[int] | None = None,
    *,
    modes: bool = False,
) -> None:
    """Write PREFIX.bin and .idx as Megatron's IndexedDatasetBuilder does, sequence by sequence."""
    width = np.dtype(dtype).itemsize
    index = [b"MMIDIDX\x00\x00", (1).to_bytes(8, "little"), bytes([MEGATRON_CODES[dtype]])]
    documents = range(len(sequences) + 1) if documents is None else documents
    index += [len(sequences).to_bytes(8, "little"), len(documents).to_bytes(8, "little")]
    index += [struct.pack("<i", len(sequence)) for sequence in sequences]
    pointer = 0
    with prefix.with_name(f"{prefix.name}.bin").open("wb") as file:
        for sequence in sequences:
            index.append(struct.pack("<q", pointer))
            pointer += len(sequence) * width
            file.write(np.array(sequence, dtype).tobytes())
    index += [struct.pack("<q", bound) for bound in documents]
    if modes:
        index.append(bytes(len(sequences)))
    prefix.with_name(f"{prefix.name}.idx").write_bytes(b"".join(index))


def write_paddlenlp(prefix: Path, documents: Sequence[Sequence[int]], dtype: str = "uint16") -> None:
    """Write PREFIX_ids.npy and PREFIX_idx.npz as create_pretraining_data.py does."""
    flat = [token for document in documents for token in document]
    np.save(f"{prefix}_ids.npy", np.array(flat, dtype))
    lengths = np.array([len(document) for document in documents], np.int32)
    np.savez(f"{prefix}_idx.npz", lens=lengths, docs=np.arange(len(documents) + 1, dtype=np.int64))
