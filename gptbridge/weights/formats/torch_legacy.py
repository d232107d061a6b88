"""torch.save before 1.6, or without the zip form: pickles one after the other, then the storages.

The pickles: a magic number, version 1001, facts about the machine, the object, the list of storage keys.
A storage is its number of elements as a 64-bit integer, then its bytes.
"""

from __future__ import annotations

from typing import Any

from gptbridge.weights.formats.source import SourceFile
from gptbridge.weights.formats.torch_tensors import TorchTensors, storage_nbytes
from gptbridge.weights.formats.weight_file import Contents

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
VERSION = 1001
# How a pickle of the magic number looks from its opcode on, whatever its protocol.
MAGIC_BYTES = b"\x8a\x0a" + MAGIC_NUMBER.to_bytes(10, "little") + b"."
_COUNT_BYTES = 8


def read_torch_legacy(source: SourceFile) -> Contents:
    """Decode the pickles of a legacy torch file and find its storages."""
    contents = Contents(source, "torch-legacy")
    tensors = TorchTensors(source, 0, source.size)
    decode = tensors.decoder.decode
    if (decode(), decode()) != (MAGIC_NUMBER, VERSION):
        source.refuse("is no torch file of version 1001")
    machine = decode()
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        source.refuse("is big-endian", allowed="little-endian")
    root, keys = decode(), decode()
    if not isinstance(keys, list):
        source.refuse("lacks its list of storages")
    tensors.add_tree(contents, root, _storages(source, tensors, keys))
    return contents


def _storages(source: SourceFile, tensors: TorchTensors, keys: list[Any]) -> dict[str, tuple[int, int]]:
    """Return where each storage's bytes lie; they fill the rest of the file, in the order of `keys`."""
    position = tensors.decoder.position
    storages: dict[str, tuple[int, int]] = {}
    for key in keys:
        storage = tensors.mentioned.get(key) if isinstance(key, str) else None
        if storage is None or key in storages:
            source.refuse("lists a storage twice, or one that no tensor uses")
        count = int.from_bytes(source.bytes_at(position, _COUNT_BYTES, "a storage"), "little")
        nbytes = storage_nbytes(storage)
        if count != storage.num_elements or position + _COUNT_BYTES + nbytes > source.size:
            source.refuse(f"ends inside a storage, or gives it {count} elements, not {storage.num_elements}")
        storages[key] = (position + _COUNT_BYTES, nbytes)
        position += _COUNT_BYTES + nbytes
    if position != source.size:
        source.refuse(f"{source.size - position} bytes follow its last storage")
    return storages
