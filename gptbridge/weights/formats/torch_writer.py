"""Write torch files: the zip form that torch.save writes, and the legacy form for torch before 1.6.

Both open with torch.load(weights_only=True), unless the tree holds a Namespace, which only a full load takes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from itertools import accumulate
from operator import mul
from pathlib import Path

from gptbridge.weights.formats.output import Checksum, OutputFile, new_file
from gptbridge.weights.formats.pickles import encoder
from gptbridge.weights.formats.pickles.torch_calls import TORCH_STORAGES
from gptbridge.weights.formats.tensor import Entry, TensorInfo, TensorRef, Tree
from gptbridge.weights.formats.torch_legacy import MAGIC_NUMBER, VERSION
from gptbridge.weights.formats.zip_writer import ZipWriter

_PROTOCOL = 2
_ROOT = "archive"
_FORMAT_VERSION = b"3\n"
_STORAGES = {dtype: name for name, dtype in TORCH_STORAGES.items() if name != "UntypedStorage"}
_MACHINE: Tree = {
    "protocol_version": VERSION,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


def write_torch(path: Path, entries: Iterable[Entry], tree: Tree = None) -> None:
    """Write the zip form, streaming. `tree` places the tensors; None is a dict of them by name."""
    listed = list(entries)
    with new_file(path) as output, Checksum() as checksum:
        append_torch(output, checksum, listed, _pickle(listed, tree, view=b""))


def append_tensor(output: OutputFile, checksum: Checksum, entry: Entry) -> None:
    """Write what torch.save makes of one tensor, wherever `output` stands."""
    append_torch(output, checksum, [entry], _pickle([entry], TensorRef(entry[0].name), view=b""))


def append_torch(output: OutputFile, checksum: Checksum, entries: list[Entry], pickle: bytes) -> None:
    """Write a zip of a pickle and the storages that it refers to, numbered as the entries are."""
    archive = ZipWriter(output, checksum)
    archive.add_bytes(f"{_ROOT}/data.pkl", pickle)
    archive.add_bytes(f"{_ROOT}/byteorder", b"little")
    for key, (info, chunks) in enumerate(entries):
        archive.add(f"{_ROOT}/data/{key}", info, chunks())
    archive.add_bytes(f"{_ROOT}/version", _FORMAT_VERSION)
    archive.finish()


def write_torch_legacy(path: Path, entries: Iterable[Entry], tree: Tree = None) -> None:
    """Write the legacy form, streaming; `tree` as for the zip form.

    ValueError for an element type without a storage class of its own, which torch does not load from it.
    """
    listed = list(entries)
    for info, _ in listed:
        if info.dtype not in _STORAGES:
            raise ValueError(f"{info.name}: torch's legacy files have no element type {info.dtype}")
    start, keys = encoder.protocol(_PROTOCOL), [str(key) for key in range(len(listed))]
    with new_file(path) as output:
        output.write(start + encoder.integer(MAGIC_NUMBER) + encoder.STOP)
        output.write(start + encoder.integer(VERSION) + encoder.STOP)
        output.write(start + encoder.plain(_MACHINE) + encoder.STOP)
        output.write(_pickle(listed, tree, view=encoder.NONE))
        output.write(start + encoder.plain([*keys]) + encoder.STOP)
        for info, chunks in listed:
            output.write(struct.pack("<Q", _storage(info)[2]))
            output.write_tensor(info, chunks())


def _pickle(entries: list[Entry], tree: Tree, *, view: bytes) -> bytes:
    """Return the pickle of a tree; each tensor is row-major and has the storage of its entry's number.

    `view` is what ends a storage's persistent id: nothing in a zip, None in a legacy file.
    """
    numbered = {info.name: (key, info) for key, (info, _) in enumerate(entries)}
    pieces = encoder.with_tensors(entries, tree)
    content = (_tensor(*numbered[p.name], view) if isinstance(p, TensorRef) else p for p in pieces)
    return encoder.protocol(_PROTOCOL) + b"".join(content) + encoder.STOP


def _storage(info: TensorInfo) -> tuple[str, str, int]:
    """Return the module and class of a tensor's storage and how many elements that counts."""
    if info.dtype in _STORAGES:
        return "torch", _STORAGES[info.dtype], info.num_elements
    return "torch.storage", "UntypedStorage", info.nbytes


def _tensor(key: int, info: TensorInfo, view: bytes) -> bytes:
    """Return the call of _rebuild_tensor_v2, or of _v3 for an element type without a storage class."""
    module, storage, count = _storage(info)
    typed = info.dtype in _STORAGES
    strides = list(accumulate((max(size, 1) for size in reversed(info.shape[1:])), mul, initial=1))[::-1]
    parts = [
        encoder.global_name("torch._utils", "_rebuild_tensor_v2" if typed else "_rebuild_tensor_v3"),
        encoder.MARK,
        encoder.MARK,
        encoder.text("storage"),
        encoder.global_name(module, storage),
        encoder.text(str(key)) + encoder.text("cpu"),
        encoder.integer(count) + view,
        encoder.TUPLE + encoder.PERSISTENT_ID,
        encoder.integer(0),
        encoder.integers(info.shape),
        encoder.integers(strides if info.shape else ()),
        encoder.boolean(False),
        encoder.global_name("collections", "OrderedDict") + encoder.EMPTY_TUPLE + encoder.REDUCE,
        b"" if typed else encoder.global_name("torch", info.dtype),
        encoder.TUPLE + encoder.REDUCE,
    ]
    return b"".join(parts)
