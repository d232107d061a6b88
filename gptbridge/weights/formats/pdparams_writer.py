"""Write .pdparams: a pickle of protocol 4 with numpy arrays inside, as paddle.save writes a state dict."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from pathlib import Path

from gptbridge.weights.formats.output import new_file
from gptbridge.weights.formats.pickles import encoder
from gptbridge.weights.formats.pickles.numpy_calls import NUMPY_CODES
from gptbridge.weights.formats.tensor import Entry, TensorInfo, TensorRef, Tree

_PROTOCOL = 4
# Paddle means bfloat16 by uint16, and its tensors take no other unsigned type but uint8.
_UNSIGNED = ("uint16", "uint32", "uint64")
_CODES = {dtype: code for code, dtype in NUMPY_CODES.items() if dtype not in _UNSIGNED} | {"bfloat16": "u2"}


def write_pdparams(path: Path, entries: Iterable[Entry], tree: Tree = None) -> None:
    """Write a .pdparams file, streaming. `tree` places the tensors; None is a dict of them by name.

    ValueError for an element type that Paddle's files cannot hold: float8, uint16 to uint64.
    """
    listed = list(entries)
    by_name = {info.name: (info, chunks) for info, chunks in listed}
    for info, _ in listed:
        if info.dtype not in _CODES:
            raise ValueError(f"{info.name}: Paddle's files have no element type {info.dtype}")
    with new_file(path) as output:
        output.write(encoder.protocol(_PROTOCOL))
        for piece in encoder.with_tensors(listed, tree):
            if isinstance(piece, TensorRef):
                info, chunks = by_name[piece.name]
                output.write(b"".join(_before_bytes(info)))
                output.write_tensor(info, chunks())
                output.write(encoder.TUPLE + encoder.BUILD)
            else:
                output.write(piece)
        output.write(encoder.STOP)


def _before_bytes(info: TensorInfo) -> Iterator[bytes]:
    """Yield the opcodes of an array up to its bytes: an empty one, then the state that BUILD gives it."""
    yield encoder.global_name("numpy.core.multiarray", "_reconstruct") + encoder.MARK
    yield encoder.global_name("numpy", "ndarray") + encoder.integers([0])
    yield _binary(1) + b"b" + encoder.TUPLE + encoder.REDUCE
    yield encoder.MARK + encoder.integer(1) + encoder.integers(info.shape)
    yield from _dtype(info)
    yield encoder.boolean(False) + _binary(info.nbytes)


def _dtype(info: TensorInfo) -> Iterator[bytes]:
    order: Tree = (3, "<" if info.storage_dtype.itemsize > 1 else "|", None, None, None, -1, -1, 0)
    yield encoder.global_name("numpy", "dtype")
    yield encoder.plain((_CODES[info.dtype], False, True)) + encoder.REDUCE
    yield encoder.plain(order) + encoder.BUILD


def _binary(nbytes: int) -> bytes:
    """Return the opcode BINBYTES8 and the length of the bytes that follow."""
    return b"\x8e" + struct.pack("<Q", nbytes)
