"""Write MindSpore's .ckpt: Checkpoint messages, slices and CRC as ckpt.py describes them."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from gptbridge.weights.formats.ckpt import (
    CONTENT,
    CRC_BYTES,
    CRC_MARK,
    DIMS,
    DTYPES,
    SLICE_BYTES,
    TAG,
    TENSOR,
    TYPE,
    VALUE,
)
from gptbridge.weights.formats.output import Checksum, TensorStream, new_file
from gptbridge.weights.formats.protobuf import VARINT, encode_length, encode_varint
from gptbridge.weights.formats.tensor import Entry, TensorInfo

# mindspore writes complex tensors and then fails to load them.
_TYPES = {dtype: name for name, dtype in DTYPES.items() if not name.startswith("Complex")}


def write_ckpt(path: Path, entries: Iterable[Entry], *, crc: bool = False) -> None:
    """Write a .ckpt file, streaming; with `crc`, as with mindspore's crc_check, a CRC at its end.

    ValueError for an element type that the format lacks.
    """
    listed = list(entries)
    for info, _ in listed:
        if info.dtype not in _TYPES:
            raise ValueError(f"{info.name}: .ckpt has no element type {info.dtype}")
    with new_file(path) as output, ExitStack() as stack:
        checksum = stack.enter_context(Checksum()) if crc else None
        for info, chunks in listed:
            stream = TensorStream(info, chunks())
            for start in range(0, max(info.nbytes, 1), SLICE_BYTES):
                nbytes = min(SLICE_BYTES, info.nbytes - start)
                header = _header(info, nbytes)
                output.write(header)
                if checksum is not None:
                    checksum.add_bytes(header)
                for piece in stream.take(nbytes):
                    output.write_piece(piece, checksum)
            stream.finish()
        if checksum is not None:
            output.write(CRC_MARK + checksum.take().to_bytes(CRC_BYTES, "big"))


def _header(info: TensorInfo, nbytes: int) -> bytes:
    """Return the message of a slice of `nbytes` bytes, up to those bytes."""
    name, kind = info.name.encode(), _TYPES[info.dtype].encode()
    dims = b"".join(encode_varint(DIMS << 3 | VARINT) + encode_varint(size) for size in info.shape)
    tensor = dims + encode_length(TYPE, len(kind)) + kind + encode_length(CONTENT, nbytes)
    tag = encode_length(TAG, len(name)) + name
    value = tag + encode_length(TENSOR, len(tensor) + nbytes) + tensor
    return encode_length(VALUE, len(value) + nbytes) + value
